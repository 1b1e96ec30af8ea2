"""SIGKILL inside every command that writes, before each call that changes a name.

Afterwards the earlier product is there whole, or the new one is, or the same command finishes it; and when it has run
again, nothing is left but its product and the user's own files.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.faults.bay import NO_LOCKS, USUAL, Bay, Steps
from tests.faults.bench import Bench, Lost
from tests.faults.commands import Command
from tests.faults.scenarios import counted

_REFUSED = 2


def kills(bench: Bench, command: Command, most: int | None, systems: tuple[str, ...] = (USUAL,)) -> None:
    """Kill the command at each step, or at a random choice of `most` steps for each start and system.

    It starts where nothing is, over its own product of the same input, and, with --force, over one of other input.
    """
    bay = Bay(bench, command)
    for system in systems:
        for earlier in ("", "B", "A"):
            options = ["--force"] if earlier == "A" else []
            steps = range(_steps(bay, earlier, options, system))
            for step in steps if most is None or most >= len(steps) else sorted(bench.drawn.sample(steps, most)):
                with counted(bench, f"SIGKILL in {command.name.partition(',')[0]}{system}"):
                    _kill(bay, earlier, options, system, step)


def _steps(bay: Bay, earlier: str, options: list[str], system: str) -> int:
    bay.clear(earlier)
    count = bay.bench.folder / "steps"
    count.write_text("0")
    if code := bay.run("B", *options, system=system, arm=Steps(bay.out, count, None)):
        raise RuntimeError(f"{bay.command.name} ended with {code}: {bay.said()[-2000:]}")
    bay.expect("B", "undisturbed")
    return int(count.read_text())


def _kill(bay: Bay, earlier: str, options: list[str], system: str, step: int) -> None:
    bay.clear(earlier)
    where = f"{bay.command.name}{system}, over {earlier or 'nothing'}, killed before call {step}"
    if (code := bay.run("B", *options, system=system, arm=Steps(bay.out, Path(os.devnull), step))) != -signal.SIGKILL:
        raise Lost(f"{where}: ended with {code}: {bay.said()[-600:]}")
    if options:
        _without_force(bay, where, system)
    if code := bay.run("B", *options, system=system):
        raise Lost(f"{where}: the next one ended with {code}: {bay.said()[-600:]}")
    bay.expect("B", f"{where}, then again", temporary=system == NO_LOCKS)


def _without_force(bay: Bay, where: str, system: str) -> None:
    """It finishes what was killed, or brings the older product back and refuses to replace it."""
    code = bay.run("B", system=system)
    if code == 0:
        bay.expect("B", f"{where}, then without --force", temporary=system == NO_LOCKS)
    elif code == _REFUSED and "--force" in bay.said() and "Traceback" not in bay.said():
        bay.expect_whole(f"{where}, then without --force", "A", "B")
    else:
        raise Lost(f"{where}, then without --force: {code}: {bay.said()[-600:]}")
