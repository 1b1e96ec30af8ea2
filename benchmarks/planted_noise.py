"""Planted damage for probes: the same documents with a share of their characters replaced, at several levels.

    python -m benchmarks.planted_noise runs/text/english.train.jsonl --output runs/noise
    python -m benchmarks.planted_noise runs/text/english.train.jsonl --output runs/noise --mixed

`noise_0.jsonl`, `noise_1.jsonl`, ... hold all documents at one level each: corpora of one name made of them are read in
one order by phases of one name, so that runs on them are paired. `--mixed` writes `mixed.jsonl` instead: each document
once, at a level drawn for it, whose windows [0, 1/5], [1/5, 2/5], ... by documents are the levels, best first. Rows get
`quality`: minus the share.

Characters are replaced, and not words: words of the corpus in wrong places lower the loss of tiny networks, which learn
spelling and not sense. What is no white space becomes a letter from a to z; size and lines stay. The characters that
are replaced at a level are among those at the next: levels differ in nothing but how much.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2)
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def damage(text: str, share: float, seed: int) -> str:
    """`text` with about `share` of its characters, white space apart, replaced by letters."""
    if not share:
        return text
    draw = np.random.default_rng(xxhash.xxh3_64_intdigest(text.encode(errors="replace"), seed=seed))
    characters = np.array(list(text))
    chosen, letters = draw.random(len(characters)), _LETTERS[draw.integers(0, len(_LETTERS), len(characters))]
    replaced = (chosen < share) & ~np.char.isspace(characters)
    return "".join(np.where(replaced, letters, characters).tolist())


def documents(paths: Sequence[Path], most_bytes: float) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines, until their texts are `most_bytes` long."""
    size = 0
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if size >= most_bytes:
                    return
                row = json.loads(line)
                size += len(row["text"].encode())
                yield row


def write(paths: Sequence[Path], output: Path, levels: Sequence[float], mixed: bool, seed: int, most: float) -> None:
    """The files, see above."""
    output.mkdir(parents=True, exist_ok=True)
    names = ["mixed"] if mixed else [f"noise_{number}" for number in range(len(levels))]
    files = [open(output / f"{name}.jsonl", "w", encoding="utf-8") for name in names]  # noqa: SIM115
    order: list[int] = []
    draw = np.random.default_rng(seed)
    for row in documents(paths, most):
        if mixed and not order:  # as many of each level
            order = draw.permutation(len(levels)).tolist()
        wanted = [(files[0], levels[order.pop()])] if mixed else list(zip(files, levels, strict=True))
        for file, share in wanted:
            damaged = {**row, "text": damage(row["text"], share, seed), "quality": -share}
            file.write(json.dumps(damaged, ensure_ascii=False) + "\n")
    for file in files:
        file.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, nargs="+", help="JSON lines with a field text")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS, help="shares of characters")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--megabytes", type=float, default=float("inf"), help="10^6 bytes of text that are read at most"
    )
    arguments = parser.parse_args()
    most = arguments.megabytes * 1e6
    write(arguments.inputs, arguments.output, arguments.levels, arguments.mixed, arguments.seed, most)


if __name__ == "__main__":
    main()
