"""Fuzz readers by hand: `python -m tests.fuzz [TARGET ...] --rounds 10000 --first 0`; without a name, all of them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.target import run
from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help="of targets, or the first letters of some; none: all")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    chosen = [target for name in options.names or [""] for target in TARGETS if target.name.startswith(name)]
    if not chosen:
        parser.error(f"no such target; there are {', '.join(target.name for target in TARGETS)}")
    bad = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for target in chosen:
            started = time.monotonic()
            seeds = range(options.first, options.first + options.rounds)
            outcome = run(target, Path(folder) / target.name, seeds)
            bad += len(outcome.faults)
            print(
                f"{target.name}: {len(seeds)} files, {outcome.accepted} accepted, {outcome.refused} refused, "
                f"{len(outcome.faults)} faults, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            for text, count in outcome.kinds().most_common(40):
                seed = next(seed for seed, other in outcome.faults if other == text)
                print(f"  {count} x {text} (seed {seed})", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
