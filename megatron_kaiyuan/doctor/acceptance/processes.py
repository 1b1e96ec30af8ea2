"""Run a check in its own process with a time limit, so that a hang or a crash stops no other check."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_kaiyuan.doctor.acceptance.check import Check, Context, Result, State
from megatron_kaiyuan.doctor.child import how_it_ended, kill_tree, start
from megatron_kaiyuan.files import read_json, write_json
from megatron_kaiyuan.redaction import redact

# Of what a check prints: its beginning and its end, where causes and consequences stand.
_OUTPUT_LINES = 400


def run_check(check: Check, context: Context) -> Result:
    """Run a check in its own process, and end it when its time is up."""
    context.work.mkdir(parents=True, exist_ok=True)
    answer, given, printed = (context.work / f"{check.name}.{kind}" for kind in ("answer", "given", "printed"))
    write_json(given, context.as_json())
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"{__spec__.parent}.one", check.where, str(given), str(answer)]
    began = time.monotonic()
    code = _run(command, printed, check.seconds, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **check.environment})
    seconds = round(time.monotonic() - began, 1)
    output = _shortened(redact(printed.read_text(encoding="utf-8", errors="replace")))
    state: State = "failed"
    facts: dict[str, Any] = {}
    if answer.exists():
        found = read_json(answer, "answer of a check")
        state, facts = found["state"], found["facts"]
        figure = redact(" ".join(found["figure"].split()))
    elif code is None:
        figure = f"did not end within {check.seconds:g} seconds and was killed{_last(output)}"
    else:
        figure = f"its process {how_it_ended(code)}{_last(output)}"
    return Result(check.name, check.title, state, figure, seconds, output, facts)


def _run(command: list[str], printed: Path, seconds: float, environment: Mapping[str, str]) -> int | None:
    """The exit code; None where the time was up."""
    process = start(command, printed, environment)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        kill_tree(process)


def _last(output: str) -> str:
    lines = output.strip().splitlines()
    return f"; its last line: {lines[-1][:160]}" if lines else ""


def _shortened(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > _OUTPUT_LINES:
        half = _OUTPUT_LINES // 2
        lines = [*lines[:half], f"... {len(lines) - _OUTPUT_LINES:,} lines left out ...", *lines[-half:]]
    return "\n".join(lines)
