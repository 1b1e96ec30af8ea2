"""Averaging checkpoints of a run into one that can be exported or started from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.find import describe_average
from megatron_kaiyuan.checkpoint.load import Stored, load_common, require_whole
from megatron_kaiyuan.checkpoint.retention import is_scheduled
from megatron_kaiyuan.checkpoint.save import require_room, save_folder
from megatron_kaiyuan.checkpoint.verify import earlier_checkpoint, read_manifest, usable_steps
from megatron_kaiyuan.checkpoint.weighting import Source, Weighting
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.optim.average import weighted_mean
from megatron_kaiyuan.outputs import Output, claim, identity_of
from megatron_kaiyuan.progress import Progress

EQUAL = Weighting()
# What is read at once of each checkpoint: as FP32; a batch is in memory some four times.
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Selection:
    """Which checkpoints to average.

    Attributes:
        last: how many of the newest scheduled ones (saved at a multiple of `checkpoint.save_every_steps`).
        stride: steps between them; None: every scheduled one.
        steps: exactly these, scheduled or not; the other two do not count then.
    """

    last: int = 8
    stride: int | None = None
    steps: tuple[int, ...] = ()


def select(run_dir: Path, wanted: Selection) -> list[int]:
    """The steps that a selection means, ascending. Step 0, the untrained weights, is none of them unless it is named.

    Raises:
        UserError: there are not so many, or one of them is not there.
    """
    there = usable_steps(run_dir)
    folder = layout.checkpoints_folder(run_dir)
    if wanted.steps:
        if twice := [step for step in wanted.steps if wanted.steps.count(step) > 1]:
            raise UserError(f"--steps: names {twice[0]} twice; name each step once")
        if missing := [step for step in wanted.steps if step not in there]:
            raise UserError(f"{folder}: holds no step_{missing[0]}; `kaiyuan checkpoint list` says which there are")
        return sorted(wanted.steps)
    scheduled = [step for step in there if step > 0 and is_scheduled(layout.step_folder(run_dir, step))]
    if wanted.stride:
        newest = scheduled[-1] if scheduled else 0
        chosen = [newest - wanted.stride * back for back in range(wanted.last)][::-1]
        if missing := [step for step in chosen if step not in scheduled]:
            raise UserError(
                f"{folder}: holds no scheduled step_{missing[-1]} for --last {wanted.last} --stride {wanted.stride}; "
                "ask for fewer, for another --stride, or name them with --steps"
            )
        return chosen
    if len(scheduled) < wanted.last:
        raise UserError(
            f"{folder}: {wanted.last} trained checkpoints asked for, {len(scheduled)} scheduled ones found (saved at "
            "multiples of checkpoint.save_every_steps); ask for fewer (--last), name them (--steps), or train further"
        )
    return scheduled[-wanted.last :]


def average_checkpoints(
    run_dir: Path, wanted: Selection, output: Path, force: bool = False, weighting: Weighting = EQUAL
) -> str:
    """Write an average of checkpoints; one process, process groups initialised.

    Args:
        output: a new folder, or an earlier average of the same kind of the same checkpoints.
        force: another average may be replaced.

    Returns:
        A one-line summary.

    Raises:
        UserError: there are fewer checkpoints, one of them is damaged or is of another network or not finite, the
            weighting does not fit them, or `output` holds something else.
    """
    sources = sources_of(run_dir, select(run_dir, wanted))
    weights = weighting.weights(sources, wanted.steps)
    identity = identity_of("average", [source.seal for source in sources], *([] if weighting == EQUAL else [weights]))
    place = Output(output, "an averaged checkpoint")
    with claim(place, identity, earlier_checkpoint("averaged_steps"), force=force):
        about = write_average(sources, weights, weighting, place.path, identity=identity)
    return f"average: {describe_average(about)}{_remarks(run_dir, about['averaged_steps'])} in {output}"


def sources_of(run_dir: Path, steps: Sequence[int]) -> list[Source]:
    """Return what the manifests of a run's checkpoints say.

    Raises:
        UserError: one of them is damaged.
    """
    folders = [layout.step_folder(run_dir, step) for step in steps]
    manifests = map(read_manifest, folders)
    return [
        Source(step, folder, manifest.get("tokens"), manifest["seal"])
        for step, folder, manifest in zip(steps, folders, manifests, strict=True)
    ]


def write_average(
    sources: Sequence[Source],
    weights: Sequence[float],
    weighting: Weighting,
    folder: Path,
    verified: bool = False,
    **about: Any,
) -> dict[str, Any]:
    """Write an average into a folder; one process, process groups initialised. The mean alone is in memory as a whole.

    Args:
        sources: ascending.
        verified: their files have been compared with the manifests already.
        about: goes into the manifest.

    Returns:
        What the manifest says.

    Raises:
        UserError: a source is damaged, is of another network or is not finite; or the disk is full.
    """
    pieces = _mean(sources, weights, folder, verified)
    steps = [source.step for source in sources]
    about |= {"averaged_steps": steps, "average": weighting.as_json(sources, weights)}
    about |= {} if sources[-1].tokens is None else {"tokens": sources[-1].tokens}
    state = {**pieces, "run": load_common(sources[-1].folder)["run"], "averaged_steps": steps}
    save_folder(folder, state, **about)
    return about


def _remarks(run_dir: Path, steps: Sequence[int]) -> str:
    """What the user may not expect of the choice."""
    remarks = []
    if len({after - before for before, after in itertools.pairwise(steps)}) > 1:
        remarks.append("unevenly spaced")
    if newer := [step for step in usable_steps(run_dir) if step > steps[-1]]:
        remarks.append(f"without the newer {', '.join(map(str, newer))}")
    return f" ({'; '.join(remarks)})" if remarks else ""


def _mean(
    sources: Sequence[Source], weights: Sequence[float], output: Path, verified: bool
) -> dict[str, ShardedTensor]:
    """Return the mean of all weights in pieces, those of a batch read from each source in turn."""
    with Progress("average", 2 * len(sources), "checkpoints") as progress:
        stored = []
        for source in sources:
            if not verified:
                require_whole(source.folder)
            stored.append(Stored(source.folder, "model"))
            _require_alike(sources[0].folder, stored[0], source.folder, stored[-1])
            progress.advance()
        pieces = {f"{name}@{piece.global_offset}": piece for name in stored[0].tensors for piece in stored[0].cut(name)}
        require_room(output, sum(map(_bytes, pieces.values())))
        mean: dict[str, ShardedTensor] = {}
        batches = list(_batches(pieces))
        for number, batch in enumerate(batches, start=1):
            values = weighted_mean(_read(sources, stored, batch), weights)
            mean |= {name: replace(piece, data=values[name], dtype=torch.float32) for name, piece in batch.items()}
            del values
            progress.advance(len(sources) * number // len(batches) - len(sources) * (number - 1) // len(batches))
    return mean


def _read(
    sources: Sequence[Source], stored: Sequence[Stored], batch: dict[str, ShardedTensor]
) -> Iterator[dict[str, torch.Tensor]]:
    for source, one in zip(sources, stored, strict=True):
        yield _require_finite(source, one.read_pieces(batch), batch)


def _require_finite(
    source: Source, tensors: dict[str, torch.Tensor], batch: dict[str, ShardedTensor]
) -> dict[str, torch.Tensor]:
    for name, tensor in tensors.items():
        # Any value that is not finite makes the sum so; sums of finite FP32 values stay far below the end of FP64.
        if not tensor.sum(dtype=torch.float64).isfinite():
            key = batch[name].key
            raise UserError(f"{source.folder}: {key} holds a value that is not finite; leave this step out (--steps)")
    return tensors


def _require_alike(first: Path, ours: Stored, other: Path, theirs: Stored) -> None:
    """Refuse to average two networks.

    Raises:
        UserError: naming a weight that is not in both, or of another shape.
    """
    a, b = ({name: tuple(one.global_shape) for name, one in stored.tensors.items()} for stored in (ours, theirs))
    if wrong := [name for name in {**a, **b} if a.get(name) != b.get(name)]:
        raise UserError(
            f"{other}: is of another network than {first} ({wrong[0]} is not in both, or of another shape); average "
            "checkpoints of one network (--steps)"
        )


def _batches(pieces: dict[str, ShardedTensor]) -> Iterator[dict[str, ShardedTensor]]:
    """Yield the pieces in batches that are read at once: of some size, or of one large piece."""
    batch: dict[str, ShardedTensor] = {}
    size = 0
    for name, piece in pieces.items():
        if batch and size + _bytes(piece) > _BATCH_BYTES:
            yield batch
            batch, size = {}, 0
        batch[name] = piece
        size += _bytes(piece)
    if batch:
        yield batch


def _bytes(piece: ShardedTensor) -> int:
    """As FP32."""
    return 4 * math.prod(piece.local_shape)
