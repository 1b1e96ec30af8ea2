"""A phase's order from the builder, as arrays."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_tools._curriculum import Builder
from tests.helpers.references.algorithm1 import Data

PLENTY = 1 << 40


class Built(NamedTuple):
    words: list[int]
    tokens: list[int]
    checks: list[int]
    profile: tuple[list[list[int]], list[list[int]]]
    groups: list[list[tuple[int, int, int, int]]]
    counts: list[tuple[int, int]]


def build(
    datasets: list[Data],
    *,
    memory: int = PLENTY,
    threads: int = 1,
    shuffle: bool = False,
    piece: int = 7,
    **settings: Any,
) -> Built:
    """Feed every dataset in pieces, and interleave them; settings go to `interleave`."""
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(folder, memory=memory, shuffle=shuffle, threads=threads)
        kept_tokens = [add(builder, data, piece) for data in datasets]
        for number, data in enumerate(datasets):
            if data.extra is None:
                builder.repeat(number, data.whole, data.probability)
            else:
                builder.repeat_to(number, data.whole, math.floor(data.extra * kept_tokens[number]))
        given, quality = builder.interleave(folder, **settings)
        words, tokens, checks = (
            np.fromfile(Path(folder) / f"{name}.bin", "<u8").tolist() for name in ("order", "tokens", "checks")
        )
        assert {path.name for path in Path(folder).iterdir()} == {"order.bin", "tokens.bin", "checks.bin"}
        numbers = range(len(datasets))
        return Built(
            words,
            tokens,
            checks,
            (given.tolist(), quality.tolist()),
            [builder.groups(number) for number in numbers],
            [builder.count(number) for number in numbers],
        )


def add_rows(builder: Builder, data: Data, piece: int) -> None:
    """The next dataset, before anything is chosen of it."""
    choice_seed, order_seed = data.seeds
    scored = data.scores is not None
    builder.begin(scored=scored, choice_seed=choice_seed, order_seed=order_seed, expected=len(data.lengths))
    lengths = np.asarray(data.lengths, np.int32)
    scores = np.asarray(data.scores, float) if scored else None
    for at in range(0, len(lengths), piece):
        part = None if scores is None else scores[at : at + piece]
        builder.add(data.first + at, lengths[at : at + piece], part, data.drop_missing)


def add(builder: Builder, data: Data, piece: int = 7) -> int:
    """The next dataset, with what it keeps; returns the tokens of that."""
    add_rows(builder, data, piece)
    scored = data.scores is not None
    if scored and data.by_tokens:
        builder.keep_tokens(*(math.floor(part * builder.weight) for part in data.ranks))
    elif scored:
        builder.keep(*(math.floor(part * builder.rows) for part in data.ranks))
    if data.random is not None:
        builder.keep_random(math.floor(data.random * builder.rows))
    return builder.tokens
