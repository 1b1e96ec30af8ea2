"""What a device sends in a step of a recipe on 64 to 1,024 devices, by kind of group: a table on paper, nothing is run.

    python -m benchmarks.communication

In GB, 1e9 bytes, of the ranks that send most of a kind; the convention is that of `planning/communication.py`.
`tests/planning/test_communication.py` counts the same on real ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan.config import check_world_size, load_run
from megatron_kaiyuan.planning.communication import Communication, most_sent

KINDS = ("tensor", "pipeline", "data")
RECIPE = Path("launch/recipes/kaiyuan-2b/train.yaml")
# Tensor and pipeline parallel size, virtual stages, sequence parallelism.
LAYOUTS = [
    *((1, 1, 1, False), (2, 1, 1, False), (2, 1, 1, True), (8, 1, 1, False), (8, 1, 1, True)),
    *((1, 2, 1, False), (1, 4, 1, False), (1, 4, 7, False), (2, 4, 1, True)),
]


def sent(recipe: Path, gpus: int, layout: tuple[int, int, int, bool]) -> Communication:
    tensor, pipeline, virtual, sequence = layout
    sizes = {"tensor_model": tensor, "pipeline_model": pipeline, "virtual_pipeline_model": virtual}
    overrides = [f"parallel.{name}_parallel_size={size}" for name, size in sizes.items()]
    run = load_run(recipe, [*overrides, f"parallel.sequence_parallel={str(sequence).lower()}"])
    check_world_size(run, gpus)
    return most_sent(run, gpus)


def row(recipe: Path, gpus: Sequence[int], layout: tuple[int, int, int, bool]) -> str:
    tensor, pipeline, virtual, sequence = layout
    found = [sent(recipe, count, layout) for count in gpus]
    by_kind = [[getattr(one, kind) for one in found] for kind in KINDS]
    numbers = [" | ".join(f"{size / 1e9:.2f}" if size else "0" for size in sizes) for sizes in by_kind]
    stages = f"PP {pipeline}" if virtual == 1 else f"PP {pipeline}x{virtual}"
    return f"| TP {tensor}{' SP' if sequence else ''}, {stages} | {' | '.join(numbers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--gpus", type=int, nargs="+", default=[64, 256, 1024])
    given = parser.parse_args()
    kinds = [f"{kind}, {count:,}" for kind in KINDS for count in given.gpus]
    print(f"| GB a step | {' | '.join(kinds)} |")
    print("|---" * (len(kinds) + 1) + "|")
    for layout in LAYOUTS:
        print(row(given.recipe, given.gpus, layout))


if __name__ == "__main__":
    main()
