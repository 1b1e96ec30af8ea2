"""Fuzz readers by hand: `python -m tests.fuzz [TARGET ...] --rounds 10000 --first 0`; without a name, all of them."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.target import run
from tests.fuzz.targets import TARGETS

# What the children need, loaded once: each of them is a fork of this process.
_HEAVY = (
    "data_tools.curriculum.build",
    "megatron.core.dist_checkpointing",
    "megatron_kaiyuan.checkpoint.save",
    "megatron_kaiyuan.monitor.replay",
    "megatron_kaiyuan.train.resume",
    "sentencepiece",
    "transformers.models.qwen3.modeling_qwen3",
)
# Files in memory where there is such a folder: flushing them to a disk takes longer than reading them.
_MEMORY = Path("/dev/shm")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help="of targets, or the first letters of some; none: all")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--json", type=Path, help="write what came of each target here too")
    options = parser.parse_args()
    chosen = [target for name in options.names or [""] for target in TARGETS if target.name.startswith(name)]
    if not chosen:
        parser.error(f"no such target; there are {', '.join(target.name for target in TARGETS)}")
    for module in _HEAVY:
        importlib.import_module(module)
    bad = 0
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_place()) as folder:
        for target in chosen:
            started = time.monotonic()
            seeds = range(options.first, options.first + options.rounds)
            outcome = run(target, Path(folder) / target.name, seeds)
            bad += len(outcome.faults)
            outcomes[target.name] = asdict(outcome)
            print(
                f"{target.name}: {len(seeds)} files, {outcome.accepted} accepted, {outcome.refused} refused, "
                f"{len(outcome.faults)} faults, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            for text, count in outcome.kinds().most_common(40):
                seed = next(seed for seed, other in outcome.faults if other == text)
                print(f"  {count} x {text} (seed {seed})", flush=True)
    if options.json:
        options.json.write_text(json.dumps(outcomes))
    sys.exit(1 if bad else 0)


def _place() -> Path | None:
    return _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK) else None


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
