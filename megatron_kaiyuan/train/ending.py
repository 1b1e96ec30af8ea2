"""What a launch script does when what it has started has ended: the one rule of all launchers.

    before=$(python -m megatron_kaiyuan.train.ending look RUN_DIR)
    COMMAND
    python -m megatron_kaiyuan.train.ending judge RUN_DIR "$before" STATUS SIGNAL RESTARTS MOST

`judge` prints `ACTION CODE RESTARTS STEP [HOST,...]`. The rule: a run that was asked to stop and has saved ends as
stopped, whatever the launcher's exit code is. A failure is worth another start while checkpoints are won, and for MOST
starts in a row without a newer checkpoint, whether a rank ended by itself or was ended by a signal. A mistake is not.
What the run folder says goes before the launcher's exit code, which may be hidden or another rank's. Needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from megatron_kaiyuan import exit_codes, logs
from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.cluster.bad_nodes import BAD_NODES, read_bad_nodes
from megatron_kaiyuan.cluster.first_failure import FIRST_FAILURE
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json, write_json
from megatron_kaiyuan.forms import Form, require_form

# How many starts without a newer checkpoint there have been, where the script does not outlive them, as under Slurm.
_RESTARTS = "restarts.json"
KEPT = "kept"

Action = Literal["end", "stopped", "again"]


class _Restarts(Form):
    restarts: Annotated[int, Field(ge=0, le=1000000)]


class _FirstFailure(Form):
    code: Annotated[int, Field(ge=1, le=255)]


@dataclass(frozen=True)
class Look:
    """A run folder before or after a start.

    Attributes:
        step: of the newest checkpoint; -1: none.
        marker: distinguishes one `preempted.json` from another; empty: there is none.
        bad_nodes, mistake, failure: the same of `bad_nodes.json`, `mistake.json` and `first_failure.json`.
    """

    step: int
    marker: str
    bad_nodes: str
    mistake: str
    failure: str = ""

    def __str__(self) -> str:
        return f"{self.step}:{self.marker}:{self.bad_nodes}:{self.mistake}:{self.failure}"

    @classmethod
    def from_text(cls, text: str) -> Look:
        step, *marks = text.split(":")
        return cls(int(step), *marks)


@dataclass(frozen=True)
class AfterEnd:
    """What to do after an end.

    Attributes:
        action: "end" (with `code`), "stopped" (the run was asked to, has saved, and is not at its end), "again".
        restarts: starts in a row without a newer checkpoint, the next one counted.
    """

    action: Action
    code: int
    restarts: int


def look(run_dir: Path) -> Look:
    """Look at a run folder, which need not be there."""
    name = layout.read_latest(run_dir)
    step = layout.step_of(name) if name else None
    names = (layout.PREEMPTED, BAD_NODES, layout.MISTAKE, FIRST_FAILURE)
    return Look(-1 if step is None else step, *(_mark(run_dir / name) for name in names))


def judge(before: Look, now: Look, status: int, signal: int, restarts: int, most: int) -> AfterEnd:
    """Say what to do after an end.

    Args:
        status: exit code of what has ended, or of the first rank that failed where that is known.
        signal: number of the signal that asked the script itself to stop; 0: none.
        restarts: starts in a row without a newer checkpoint before this end.
        most: how many of them there may be; 0: no start after a failure.
    """
    if now.marker and now.marker != before.marker:
        stop = exit_codes.of_signal(signal) if signal or not exit_codes.is_stop(status) else status
        return AfterEnd("stopped", stop, 0)
    if signal:
        return AfterEnd("end", exit_codes.of_signal(signal), 0)
    if now.mistake and now.mistake != before.mistake:
        return AfterEnd("end", exit_codes.MISTAKE, 0)
    if status in (exit_codes.FINISHED, exit_codes.MISTAKE):
        return AfterEnd("end", status, 0)
    if now.bad_nodes and now.bad_nodes != before.bad_nodes:
        status = exit_codes.BAD_NODE
    if now.step > before.step:
        restarts = 0
    return AfterEnd("end", status, restarts) if restarts >= most else AfterEnd("again", status, restarts + 1)


def _mark(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _kept_restarts(run_dir: Path) -> int:
    path = run_dir / _RESTARTS
    try:
        return require_form(path, read_json(path, "restarts"), _Restarts).restarts
    except (OSError, UserError):
        return 0


def _first_failure(run_dir: Path, status: int) -> int:
    """Return the exit code of the first rank that failed; `status` where the file cannot be used."""
    path = run_dir / FIRST_FAILURE
    try:
        return require_form(path, read_json(path, "first failure"), _FirstFailure).code
    except (OSError, UserError):
        return status


def _keep(run_dir: Path, verdict: AfterEnd) -> None:
    # A full disk, or a folder that is not there: the next start is then counted as the first one.
    with contextlib.suppress(OSError, UserError):
        if verdict.action == "again":
            write_json(run_dir / _RESTARTS, {"restarts": verdict.restarts})
        else:
            (run_dir / _RESTARTS).unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> None:
    """Answer a launch script, as above; RESTARTS is a number, or `kept`: in the run folder."""
    command, run_dir = arguments[0], Path(arguments[1])
    now = look(run_dir)
    if command == "look":
        print(now)
        return
    before = Look.from_text(arguments[2])
    status, signal, most = int(arguments[3]), int(arguments[4]), int(arguments[6])
    if status != exit_codes.FINISHED and now.failure != before.failure:
        status = _first_failure(run_dir, status)
    kept = arguments[5] == KEPT
    restarts = _kept_restarts(run_dir) if kept else int(arguments[5])
    verdict = judge(before, now, status, signal, restarts, most)
    if kept:
        _keep(run_dir, verdict)
    named = read_bad_nodes(run_dir) if now.bad_nodes != before.bad_nodes else None
    print(verdict.action, verdict.code, verdict.restarts, now.step, ",".join(named.hosts) if named else "")


if __name__ == "__main__":
    logs.set_up()
    main(sys.argv[1:])
