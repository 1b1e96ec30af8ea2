"""`kaiyuan doctor --acceptance`: the checks one after the other, each whatever became of the others."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from megatron_kaiyuan.doctor.acceptance.check import Check, Context, Result
from megatron_kaiyuan.doctor.acceptance.processes import run_check
from megatron_kaiyuan.doctor.acceptance.record import AcceptanceRecord, open_record
from megatron_kaiyuan.doctor.acceptance.table import CHECKS
from megatron_kaiyuan.errors import UserError

_CPU_RANKS = 2


def run_acceptance(
    platform: str,
    output: Path,
    only: Sequence[str] = (),
    recipe: Path | None = None,
    ranks: int | None = None,
    checks: Sequence[Check] = CHECKS,
) -> int:
    """Run the checks and write their record. A check that is in the record of an earlier start, not failed, is kept.

    Args:
        platform: as in a recipe.
        output: folder of the record.
        only: names of the checks to run, whether they are in the record or not; none: all.
        recipe: trained for a step by the last check; None: Kaiyuan-2B's.
        ranks: devices to use; None: all that are found.

    Returns:
        The exit code: 1 when a check failed.

    Raises:
        UserError: a name or the folder is wrong.
    """
    wanted = _named(only, checks)
    if recipe is not None and not recipe.is_file():
        raise UserError(f"--recipe {recipe}: not found")
    for one in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, _stop)
    with open_record(output, platform, recipe) as record:
        say(f"acceptance: {len(wanted)} checks on platform {platform}, into {output}; half an hour on eight devices")
        kept = {} if only else record.passed()
        if kept:
            say(f"acceptance: {len(kept)} of them are in the record already, and are not run again")
        # The first one says what the others are given, so it always runs.
        first = Context(platform, ranks or 1, output / "work", recipe)
        try:
            devices = _run(checks[0], first, record, 1)
            context = _context(first, devices, ranks)
            for check in wanted:
                if check is not checks[0]:
                    number = 1 + checks.index(check)
                    old = kept.get(check.name)
                    say(f"{number:>2} {old.line}") if old else _run(check, context, record, number)
        finally:
            shutil.rmtree(first.work, ignore_errors=True)
        return _tell(record, checks)


def _context(first: Context, devices: Result, ranks: int | None) -> Context:
    """What the other checks are given, by what the first one found."""
    name = devices.facts.get("platform", first.platform)
    found = devices.facts.get("devices") or (_CPU_RANKS if name == "cpu" else 1)
    return replace(first, platform=name, ranks=ranks or found, small=name == "cpu")


def say(line: str) -> None:
    print(line, flush=True)


def _run(check: Check, context: Context, record: AcceptanceRecord, number: int) -> Result:
    result = run_check(check, context)
    record.add(number, result)
    say(f"{number:>2} {result.line}")
    return result


def _named(only: Sequence[str], checks: Sequence[Check]) -> list[Check]:
    known = [check.name for check in checks]
    if unknown := [name for name in only if name not in known]:
        raise UserError(f"--only {unknown[0]}: there is no such check; known: {', '.join(known)}")
    return [check for check in checks if not only or check.name in only]


def _tell(record: AcceptanceRecord, checks: Sequence[Check]) -> int:
    states = [result.state for result in record.results.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("ok", "failed", "not possible"))
    missing = len(checks) - len(states)
    say(f"acceptance: {counts}{f', {missing} not run' if missing else ''}; to send back: {record.file}")
    return 1 if "failed" in states else 0


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # Through every `finally`: what was started ends, and the record stays.
    sys.exit(128 + number)
