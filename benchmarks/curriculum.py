"""Documents a second of the curriculum builder (csrc/) against NumPy's lexsort, for the same order, in one run.

    python -m benchmarks.curriculum --documents 2000000 --datasets 24 --threads 2

Both make Algorithm 1 with the same seeded hash, so their orders are compared entry by entry. The best of three
rounds counts, since other work on the machine only ever slows a round.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools import _curriculum

# Name, sequences, scores or None, copies (always None here).
Dataset = tuple[str, NDArray[np.uint64], Any, None]
SEED, ROUNDS = 1, 3


def random_datasets(documents: int, datasets: int) -> list[Dataset]:
    """Uneven sizes; a third of the datasets is unscored, a third has distinct scores, a third has a hundred levels."""
    generator = np.random.default_rng(0)
    made: list[Dataset] = []
    for number, size in enumerate(generator.multinomial(documents, generator.dirichlet(np.ones(datasets))).tolist()):
        scores = [None, generator.random(size), generator.integers(0, 100, size).astype(float)][number % 3]
        made.append((f"dataset_{number}", np.arange(size, dtype=np.uint64), scores, None))
    return made


def splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """csrc/hash.h for arrays."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def lexsort_order(datasets: list[Dataset]) -> NDArray[np.uint64]:
    """Algorithm 1 as a NumPy user would write it: a lexsort for each dataset, and one of all rows."""
    total = sum(len(sequences) for _, sequences, _, _ in datasets)
    state = splitmix(splitmix(np.array([SEED], np.uint64)))
    positions, ties, identifiers = [], [], []
    for number, (_, sequences, scores, _) in enumerate(datasets):
        rows = np.uint64(number << 48) | sequences
        draws = splitmix(splitmix(state ^ rows))
        ranked = np.argsort(draws) if scores is None else np.lexsort((draws, scores))
        positions.append(np.arange(1, len(rows) + 1) / max(len(rows), 1) * total)
        ties.append(splitmix(draws[ranked] ^ np.uint64(2)))
        identifiers.append(rows[ranked])
    return np.concatenate(identifiers)[np.lexsort((np.concatenate(ties), np.concatenate(positions)))]


def best_time(build: Callable[[], NDArray[np.uint64]]) -> tuple[float, NDArray[np.uint64]]:
    """Seconds of the fastest round, and the order."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        order = build()
        seconds.append(time.perf_counter() - began)
    return min(seconds), order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--datasets", type=int, default=24)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    datasets = random_datasets(arguments.documents, arguments.datasets)

    reference, expected = best_time(lambda: lexsort_order(datasets))
    print(f"numpy lexsort        {arguments.documents / reference / 1e6:6.2f} M documents/s")
    for threads in sorted({1, arguments.threads}):
        own, order = best_time(partial(_curriculum.order, datasets, shuffle=False, seed=SEED, threads=threads))
        if not np.array_equal(order, expected):
            raise SystemExit("the two orders differ")
        rate, ratio = arguments.documents / own / 1e6, reference / own
        print(f"csrc, {threads:2} threads     {rate:6.2f} M documents/s, {ratio:.1f} times numpy, same order")


if __name__ == "__main__":
    main()
