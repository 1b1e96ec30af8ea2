"""The fault matrix: real ranks, real signals, real damage; each run has to end as if nothing had happened.

python -m tests.faults --quick              some of each kind, about a minute
python -m tests.faults --all                everything, at least 200 SIGKILLs inside saves
python -m tests.faults --commands           only the commands that write: kills in them, two at once, no deleting
python -m tests.faults --all --seed 7       as another run that printed this seed; the moments of kills still differ
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

# Up to four ranks on whatever cores there are: threads of their own would only compete.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.faults import commands, races, scenarios, writers
from tests.faults.bay import NO_EXCHANGE, NO_LOCKS, USUAL
from tests.faults.bench import LAYOUTS, Bench

# Those of which two at once are tried, and old products that cannot be deleted.
_RACED = ("curriculum", "preprocess", "merge", "train", "average", "export")


def quick(bench: Bench) -> None:
    for asynchronous in (True, False):
        scenarios.kills_in_saves(bench, "dp2", asynchronous, everybody=False, most=2)
    scenarios.kills_in_saves(bench, "tp2", True, everybody=True, most=1)
    scenarios.sigterm(bench, "dp2")
    scenarios.sigstop(bench, "dp2")
    scenarios.file_limit(bench, "dp2")
    scenarios.damaged_files(bench, "dp2", most=4)
    scenarios.two_jobs(bench, "dp2")
    for command in commands.prepare(bench, evaluation=False):
        if command.name in ("kaiyuan-data curriculum", "kaiyuan-data merge"):
            writers.kills(bench, command, most=2)
            races.two_at_once(bench, command, rounds=1)
            races.cannot_delete(bench, command)


def commands_that_write(bench: Bench) -> None:
    """Every name-changing call of the quick commands, some of the slow ones; other file systems with some of each."""
    for command in commands.prepare(bench, evaluation=True):
        print(f"kills in {command.name}", flush=True)
        writers.kills(bench, command, most=3 if command.heavy else 40)
        writers.kills(bench, command, most=1 if command.heavy else 8, systems=(NO_EXCHANGE, NO_LOCKS))
        if command.name.split()[-1] in _RACED:
            races.two_at_once(bench, command, rounds=2 if command.heavy else 10, systems=(USUAL, NO_LOCKS))
            races.cannot_delete(bench, command)


def everything(bench: Bench, kills: int) -> None:
    commands_that_write(bench)
    for layout in LAYOUTS:
        scenarios.sigterm(bench, layout)
        scenarios.sigstop(bench, layout)
        scenarios.file_limit(bench, layout)
        scenarios.wrong_latest(bench, layout)
        scenarios.two_jobs(bench, layout)
        if scenarios.can_mount():
            scenarios.full_disk(bench, layout)
            scenarios.read_only_disk(bench, layout)
        scenarios.damaged_files(bench, layout, most=None)
    # Two thirds of the kills hit one rank, a third all of them; half of each in asynchronous saves.
    while (missing := kills - _kills(bench)) > 0:
        layout = bench.drawn.choice(list(LAYOUTS))
        asynchronous, everybody = bench.drawn.random() < 0.5, bench.drawn.random() < 1 / 3
        scenarios.kills_in_saves(bench, layout, asynchronous, everybody, most=min(missing, 8))
        print(f"{_kills(bench)} of {kills} kills inside saves", flush=True)


def _kills(bench: Bench) -> int:
    return sum(count.injected for name, count in bench.counts.items() if "in a save" in name)


def show(bench: Bench) -> int:
    """Print the table; how many faults were lost."""
    if not scenarios.can_mount():
        for name in ("disk full", "disk turns read-only", "cannot delete"):
            bench.count(name).not_run = "needs the right to mount"
    width = max(map(len, bench.counts))
    print(f"\n{'fault':<{width}} {'injected':>9} {'survived':>9} {'lost':>5}")
    for name, count in bench.counts.items():
        print(f"{name:<{width}} {count.injected:>9} {count.survived:>9} {count.lost:>5}  {count.not_run}".rstrip())
    injected, survived, lost = (
        sum(getattr(count, field) for count in bench.counts.values()) for field in ("injected", "survived", "lost")
    )
    print(f"{'all':<{width}} {injected:>9} {survived:>9} {lost:>5}")
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true")
    size.add_argument("--all", action="store_true")
    size.add_argument("--commands", action="store_true")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs inside saves with --all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kaiyuan-faults-"))
    bench = Bench(folder, arguments.seed)
    if arguments.quick:
        quick(bench)
    elif arguments.commands:
        commands_that_write(bench)
    else:
        everything(bench, arguments.kills)
    lost = show(bench)
    kept = f"; runs that were lost: {folder}" if lost else ""
    print(f"faults: {lost} lost, seed {arguments.seed}, {time.monotonic() - began:.0f} s{kept}")
    if not lost:
        shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
