"""Batches that bad steps left out, on disk at once: a crash before the next checkpoint must not meet them again.

`run_dir/left_out.json` lists them in the order of time. A run that resumes before some of them treats them as the run
without the crash did, bit for bit: ranges of a rollback stay out of the stream, and a skipped batch is skipped.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan.cluster.groups import broadcast_from_rank_0
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.files import read_json, write_json
from megatron_kaiyuan.train.bad_steps import BadSteps
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.resume import Resumed
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.state import RunProgress
from megatron_kaiyuan.train.step import StepResult
from megatron_kaiyuan.train.votes import Votes

log = logging.getLogger(__name__)

LEFT_OUT = "left_out.json"
_WHAT = "list of batches that bad steps left out"
# After a change in anything else a batch may be a good one, or another one.
_NOT_JUDGED_BY = ("checkpoint.", "monitor.", "parallel.", "platform", "train.train_tokens")

# "action": "skip", "step", "tokens": [start, stop), "reason", "overflow": of the loss scaler
# "action": "rollback", "step", "tokens": [start, stop), "reason", "checkpoint": the step that the run went back to
Entry = dict[str, Any]


class LeftOut(Hook):
    """The list of one run, the same on every rank; rank 0 reads and writes it. Collective.

    Args:
        resumed: a new run starts an empty list; a run whose learning rates, bounds or data have changed judges the
            batches that it has skipped again.

    Raises:
        UserError: the list cannot be read.
    """

    def __init__(self, run_dir: Path, resumed: Resumed):
        self._path = run_dir / LEFT_OUT
        self._entries: list[Entry] = broadcast_from_rank_0(lambda: _read(self._path, is_new=resumed.step is None))
        changed = any(not change.field.startswith(_NOT_JUDGED_BY) for change in resumed.changes)
        skips = [entry for entry in self._entries if entry["action"] == "skip" and not changed]
        self._skips = {entry["tokens"][0]: entry for entry in skips}

    def recall(self, progress: RunProgress, bad_steps: BadSteps) -> None:
        """Put a state that was just restored where the run without an interruption was."""
        rollbacks = [entry for entry in self._entries if entry["action"] == "rollback"]
        known = progress.left_out
        progress.left_out = [*known, *(entry["tokens"] for entry in rollbacks if entry["tokens"] not in known)]
        bad_steps.recall([entry["checkpoint"] for entry in rollbacks], self._reasons())

    def ahead(self, position: int) -> list[Entry]:
        """What a run at a position will still leave out."""
        held = [*self._skips.values(), *(entry for entry in self._entries if entry["action"] == "rollback")]
        return sorted((entry for entry in held if entry["tokens"][1] > position), key=lambda entry: entry["tokens"])

    def vote(self, session: Session) -> Votes:
        """The loss scaler of a batch that is skipped again answers as it did."""
        entry = self._skips.get(session.state.progress.tokens)
        return Votes(overflow=int(entry is not None and entry["overflow"]))

    def skip(self, result: StepResult) -> None:
        """Remember the batch of a step that is skipped."""
        if result.tokens[0] not in self._skips:
            self._add(result, "skip", list(result.tokens), overflow=result.overflow)

    def roll_back(self, result: StepResult, tokens: list[int], checkpoint: int) -> None:
        """Remember the tokens that a rollback to the checkpoint of a step is about to leave out."""
        self._add(result, "rollback", tokens, checkpoint=checkpoint)

    def _reasons(self) -> dict[int, str]:
        return {start: entry["reason"] for start, entry in self._skips.items()}

    def _add(self, result: StepResult, action: str, tokens: list[int], **more: Any) -> None:
        assert result.fault is not None
        entry = {"action": action, "step": result.step, "tokens": tokens, **more}
        self._entries = [*self._entries, {**entry, "reason": result.fault.reason}]
        if torch.distributed.get_rank() == 0:
            try:
                write_json(self._path, self._entries)
            except OSError as error:
                log.warning(f"{self._path}: {describe(error)}; after a crash the run would meet this batch again")


def _read(path: Path, is_new: bool) -> list[Entry]:
    if is_new:
        # Of a run that was here before and whose checkpoints are gone.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    if not path.exists():
        return []
    with contextlib.suppress(UserError):
        entries = read_json(path, _WHAT)
        if isinstance(entries, list) and all(map(_is_entry, entries)):
            return entries
    raise UserError(f"{path}: is not a {_WHAT}; restore it, or remove it to have these batches judged again")


def _is_entry(entry: Any) -> bool:
    kinds: dict[str, dict[str, type]] = {"skip": {"overflow": bool}, "rollback": {"checkpoint": int}}
    if not isinstance(entry, dict) or entry.get("action") not in list(kinds):
        return False
    fields = {"step": int, "reason": str, "tokens": list, **kinds[entry["action"]]}
    if not all(isinstance(entry.get(name), kind) for name, kind in fields.items()):
        return False
    return len(entry["tokens"]) == 2 and all(isinstance(one, int) for one in entry["tokens"])
