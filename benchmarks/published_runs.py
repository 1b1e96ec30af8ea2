"""`kaiyuan plan` beside published training runs: speeds, each also with the other runs' utilization; choice of layout.

    python -m benchmarks.published_runs

On paper, in a minute: nothing is trained. A kind of device has one utilization, that of its matrix products, which is
least wrong, as a ratio, for all of its runs. "others": that of the other runs alone, so that a run has no part in its
own plan. Then many layouts of one network that a team has measured: which of them does the plan rank first, and how
long is its measured step beside the shortest? What a source does not give is assumed; the last lines say so.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.published_data import RUNS, Published, Run, measured_layouts, name_of, print_table, recipe_of
from benchmarks.published_layouts import print_choices
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.layouts import legal_layouts
from megatron_kaiyuan.planning.memory import fullest_stage
from megatron_kaiyuan.planning.plan import USABLE
from megatron_kaiyuan.planning.speed import flops_per_token


def all_runs() -> list[Run]:
    """The published runs, and of each network in many layouts the fastest."""
    fastest: dict[tuple[str, int], Published] = {}
    for published, _ in measured_layouts():
        key = published.name, published.gpus
        if key not in fastest or (published.tokens or 0) > (fastest[key].tokens or 0):
            fastest[key] = published
    with tempfile.TemporaryDirectory() as folder:
        return [Run(published, recipe_of(published, Path(folder))) for published in (*RUNS, *fastest.values())]


def middle(values: Iterable[float]) -> float:
    """The value whose ratio to the smallest and to the largest is the same."""
    found = list(values)
    return math.sqrt(min(found) * max(found))


def speed_ratios(runs: Sequence[Run]) -> list[tuple[float, float, float]]:
    """Of each run its own utilization, planned over published speed, and the same with the other runs' utilization."""
    own = [run.utilization() for run in runs]
    found = []
    for index, run in enumerate(runs):
        others = [mfu for place, mfu in enumerate(own) if place != index and runs[place].device is run.device]
        planned = run.planned(run.device.assumed_mfu), run.planned(middle(others))
        found.append((own[index], planned[0] / run.tokens, planned[1] / run.tokens))
    return found


def best_layout(run: Run) -> tuple[str, float]:
    """The fastest layout of the plan that fits, and its tokens a second of a device."""
    gpus, device = run.published.gpus, run.device
    usable, found = device.memory_bytes(gpus) * USABLE, []
    for layout in legal_layouts(run.recipe, gpus):
        if fullest_stage(layout, gpus, device).device.total <= usable:
            tokens = Run(run.published, layout).planned(device.assumed_mfu)
            found.append((tokens, name_of(layout)))
    if not found:
        raise UserError("no layout fits")
    fastest = max(found)[0]
    tokens, name = max(found, key=lambda one: (round(one[0] / fastest, 2), -len(one[1])))
    return name, tokens


def print_speeds() -> list[Run]:
    runs = all_runs()
    ratios = speed_ratios(runs)
    rows = []
    for run, (own, ratio, of_others) in zip(runs, ratios, strict=True):
        published, peak = run.published, run.device.half_tflops or 0
        mfu = run.tokens * flops_per_token(run.recipe) / peak / 1e12
        try:
            name, best = best_layout(run)
            choice = [name, f"{best:,.0f}", f"{run.planned(run.device.assumed_mfu) / best:.2f}"]
        except UserError:
            choice = ["none fits", "", ""]
        row = [published.name, f"{published.gpus} x {published.device}", name_of(run.recipe), f"{run.tokens:,.0f}"]
        rows.append([*row, f"{mfu:.1%}", f"{own:.2f}", f"{ratio:.2f}", f"{of_others:.2f}", *choice])
    head = ["run", "devices", "layout", "tokens/s", "MFU, causal", "products", "planned/published", "others"]
    print_table([*head, "plan's best", "tokens/s planned", "theirs/best"], rows)
    for device in dict.fromkeys(run.device for run in runs):
        mine = [ratio for run, ratio in zip(runs, ratios, strict=True) if run.device is device]
        fitted, left_out = [ratio for _, ratio, _ in mine], [ratio for _, _, ratio in mine]
        print(
            f"{device.name}: {len(mine)} runs, products {middle(own for own, _, _ in mine):.2f} of the peak; "
            f"planned/published {min(fitted):.2f} to {max(fitted):.2f}, median {statistics.median(fitted):.2f}; "
            f"with the others' utilization {min(left_out):.2f} to {max(left_out):.2f}"
        )
    low, high = across_kinds(runs, [own for own, _, _ in ratios])
    print(
        f"all kinds: products {middle(own for own, _, _ in ratios):.2f} of the peak; with the utilization of the other "
        f"kinds of device planned/published {low:.2f} to {high:.2f}"
    )
    return runs


def across_kinds(runs: Sequence[Run], own: Sequence[float]) -> tuple[float, float]:
    """Least and most of planned over published speed, each kind of device planned with the others' utilization."""
    ratios = []
    for run in runs:
        others = [mfu for mfu, other in zip(own, runs, strict=True) if other.device is not run.device]
        ratios.append(run.planned(middle(others)) / run.tokens)
    return min(ratios), max(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    runs = print_speeds()
    print()
    print_choices()
    print()
    for source in dict.fromkeys(run.published.source for run in runs):
        mine = [run.published for run in runs if run.published.source == source]
        notes = sorted({published.assumed for published in mine if published.assumed})
        names = ", ".join(dict.fromkeys(published.name for published in mine))
        print(f"{names}: {source}" + (f"; assumed: {'; '.join(notes)}" if notes else ""))


if __name__ == "__main__":
    main()
