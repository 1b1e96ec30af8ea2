"""Taking up a run where its newest whole checkpoint left it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.choose import choose_step
from megatron_kaiyuan.checkpoint.common_form import ResumableForm
from megatron_kaiyuan.checkpoint.load import load_common, load_sharded, loading
from megatron_kaiyuan.checkpoint.verify import read_manifest
from megatron_kaiyuan.cluster.groups import broadcast_from_rank_0
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.compare import Change, compare, flatten, is_refused
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.data.tokenizer_identity import difference
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.redaction import redact_values
from megatron_kaiyuan.train.state import TrainState
from megatron_kaiyuan.versions import git_state, versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """What a start found; equal on every rank.

    Attributes:
        step: the step that the run continues from; None for a new run.
        problems: what was wrong with newer checkpoints or with `latest`.
        changes: what of the configuration or of the phases ahead is not what it was; it is taken.
    """

    step: int | None = None
    problems: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


def resume(run: RunConfig, state: TrainState, identity: dict[str, Any], strict: bool = False) -> Resumed:
    """Restore the newest whole checkpoint of a run, if it has one. Collective.

    Args:
        identity: of the run that is about to start, see `run_identity`.
        strict: refuse when the newest checkpoint is damaged or gone.

    Raises:
        UserError: none is whole, `strict` refuses, or the checkpoint is of another network or of other data.
    """
    choice = choose_step(run.run_dir, strict)
    _say(choice.problems)
    if choice.step is None:
        return Resumed()
    folder = layout.step_folder(run.run_dir, choice.step)
    changes = broadcast_from_rank_0(lambda: _accept(folder, identity))
    _say([f"{folder.name} continues changed: {'; '.join(map(str, changes))}"] if changes else [])
    restore_step(state, folder)
    return Resumed(choice.step, choice.problems, changes)


def restore_step(state: TrainState, folder: Path) -> None:
    """Put everything that changes back to what a checkpoint holds, at the start or in the middle of a run. Collective.

    The caller has verified `folder`.

    Raises:
        UserError: what was stored does not fit the state, or cannot be loaded.
    """
    # A step from before the run kept an average has none.
    with_ema = state.ema is not None and broadcast_from_rank_0(lambda: "ema" in read_manifest(folder))
    loaded = load_sharded(folder, state.sharded(is_loading=True, with_ema=with_ema))
    with loading(folder, Exception):
        state.restore(loaded)


def run_identity(run: RunConfig, stream: TokenStream) -> dict[str, Any]:
    """What a checkpoint says about the run that wrote it. Collective."""
    return {
        "config": redact_values(run.model_dump(mode="json")),
        "phases": [phase.identity() for phase in stream.phases],
        "tokenizer": stream.tokenizer,
        "versions": versions(),
        "git": broadcast_from_rank_0(git_state),
        "world_size": torch.distributed.get_world_size(),
    }


def _accept(folder: Path, identity: dict[str, Any]) -> list[Change]:
    """What changed since the checkpoint and is taken.

    Raises:
        UserError: the network or its data are others.
    """
    common = load_common(folder, ResumableForm)
    saved = common["run"]
    changes = compare(saved["config"], identity["config"])
    begun, ahead = _compare_phases(saved["phases"], identity["phases"], common["progress"]["tokens"])
    refused = [change for change in changes if is_refused(change)] + begun
    was, now = saved.get("tokenizer"), identity["tokenizer"]
    if difference(was, now):
        refused.append(Change("the tokenizer of the corpora", was["fingerprint"], now["fingerprint"]))
    if refused:
        raise UserError(
            f"{folder}: cannot be resumed: {'; '.join(map(str, refused))}; undo that, or choose another run_dir "
            "(--init-from takes the weights along where shapes allow)"
        )
    return changes + ahead


def _compare_phases(
    saved: list[dict[str, Any]], current: list[dict[str, Any]], position: int
) -> tuple[list[Change], list[Change]]:
    """Differences in phases that the run has begun, and in phases still ahead of it."""
    begun: list[Change] = []
    ahead: list[Change] = []
    start = 0
    for index in range(max(len(saved), len(current))):
        was = saved[index] if index < len(saved) else None
        now = current[index] if index < len(current) else None
        (begun if was and start < position else ahead).extend(_phase_changes(index, was, now))
        start += was["tokens"] if was else 0
    return begun, ahead


def _phase_changes(index: int, was: dict[str, Any] | None, now: dict[str, Any] | None) -> list[Change]:
    """What is not as it was in one phase: its name, its tokens, its order, or the fingerprint of a corpus."""
    if was is None or now is None:
        return [Change(f"data.phases.{index} (content)", was and was["name"], now and now["name"])]
    before, after = flatten(was), flatten(now)
    # The checkpoint may know less of a phase than this version writes down.
    names = [name for name in dict.fromkeys([*before, *after]) if name.partition(".")[0] in was]
    return [
        Change(f"{name} of phase {was['name']!r}", before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _say(lines: list[str]) -> None:
    if torch.distributed.get_rank() == 0:
        for line in lines:
            log.warning(line)
