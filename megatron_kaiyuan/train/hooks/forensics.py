"""What left the range first in a step that overflowed: the step is run again, watched, and a capsule is written.

The update of such a step was withheld, so the weights are those it was computed with, and nothing in a step is drawn at
random. Other steps are not watched and cost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_kaiyuan.cluster.groups import broadcast_from_rank_0
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.data.documents import documents_between
from megatron_kaiyuan.errors import describe
from megatron_kaiyuan.monitor.capsule import Capture, write_capsule
from megatron_kaiyuan.monitor.first_out_of_range import FirstOutOfRange, FirstOverflow, TensorWatch
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.train.batch import GlobalBatch, sample_positions
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.repeat import repeated_step
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult, forward_and_backward
from megatron_kaiyuan.versions import versions

log = logging.getLogger(__name__)


def forensics(run: RunConfig, sinks: Sinks) -> list[Hook]:
    """The hook that the recipe asks for, or none."""
    return [Forensics(run, sinks)] if run.monitor.overflow_capsules else []


@dataclass(frozen=True)
class _Step:
    """A step that overflowed: its number from 1, the position of its batch and the loss scale that it used."""

    number: int
    position: int
    loss_scale: float
    fault: bool


@dataclass(frozen=True)
class _Place:
    """What one rank found, and which rank that is; `stage` is a virtual one where a rank has several."""

    found: FirstOverflow
    rank: int
    data_rank: int
    stage: int

    @property
    def key(self) -> tuple[bool, int, int, int]:
        """Orders the whole step: forward passes, then micro-batches, stages as they come, and tensors of a stage."""
        backward = self.found.seen.direction == "backward"
        return backward, self.found.micro_batch, -self.stage if backward else self.stage, self.found.order


class Forensics(Hook):
    """An event `overflow` for each step that overflowed; capsules for those that loss scaling does not handle.

    After the monitor, which reads the gradients of the step itself. What is left are gradient buffers of zeros,
    as every step makes them.
    """

    def __init__(self, run: RunConfig, sinks: Sinks):
        self._run, self._sinks = run, sinks

    def after_step(self, session: Session, result: StepResult) -> None:
        self._look_into(session, result)

    def bad_step(self, session: Session, result: StepResult) -> None:
        # Where the run continues, `after_step` comes when others have looked at the gradients.
        if result.fault is not None and result.fault.action != "skip":
            self._look_into(session, result)

    def _look_into(self, session: Session, result: StepResult) -> None:
        if result.finite:
            return
        step = _Step(result.step, result.tokens[0], result.loss_scale, result.fault is not None)
        with repeated_step(session.state, step.loss_scale):
            firsts = [FirstOutOfRange(session.state.platform.keeps_overflow) for _ in session.state.network.chunks]
            watches = [
                TensorWatch(chunk, first) for chunk, first in zip(session.state.network.chunks, firsts, strict=True)
            ]
            self._run_again(session, step, [handle for watch in watches for handle in watch.handles])
            places = _first_places([first.first for first in firsts])
            if not places:
                self._tell_nothing(step, session.state.platform.keeps_overflow)
                return
            details = self._describe(session, step, places)
            if self._wants_capsule(step, places[0]):
                details.update(self._write(session, step, places[0], details))
        self._sinks.event("overflow", **details)

    def _run_again(self, session: Session, step: _Step, handles: list[Any]) -> None:
        state = session.state
        try:
            batches = GlobalBatch(session.stream, step.position, self._run, state.platform.device)
            forward_and_backward(state, batches, self._run.train)
        finally:
            for handle in handles:
                handle.remove()

    def _describe(self, session: Session, step: _Step, places: list[_Place]) -> dict[str, Any]:
        """The event's fields; `places` are ranks that hold the first tensor, all of the same micro-batch number."""
        first, train = places[0], self._run.train
        seen, micro_batch = first.found.seen, first.found.micro_batch
        ranks = parallel_state.get_data_parallel_world_size()
        positions = sample_positions(step.position, train, first.data_rank, ranks)
        start = int(positions[micro_batch][0])
        # The last label is the token after the micro-batch.
        stop = min(start + train.micro_batch_size * train.seq_length + 1, session.stream.tokens)
        world = torch.distributed.get_world_size()
        message = (
            f"{seen} left the range of {train.precision} first, on rank {first.rank} of {world}, in step "
            f"{step.number}, micro-batch {micro_batch + 1} of {len(positions)}, at loss scale {step.loss_scale:g}"
        )
        return {
            "step": step.number,
            "message": message,
            "direction": seen.direction,
            "layer": seen.layer,
            "tensor": seen.tensor,
            "module": seen.module,
            "rank": first.rank,
            "ranks": [place.rank for place in places],
            "micro_batch": micro_batch + 1,
            "loss_scale": step.loss_scale,
            "tokens": [start, stop],
            "documents": documents_between(session.stream, start, stop),
        }

    def _tell_nothing(self, step: _Step, keeps_overflow: bool) -> None:
        cause = (
            "the device's register shows the overflow, and it may leave no tensor that shows it"
            if keeps_overflow
            else "the sum of gradients over micro-batches and ranks overflowed, or a device erred"
        )
        message = (
            f"step {step.number} overflowed at loss scale {step.loss_scale:g}, and every tensor stayed in the range of "
            f"{self._run.train.precision} when its passes were run again: {cause}"
        )
        self._sinks.event("overflow", step=step.number, message=message, loss_scale=step.loss_scale)

    def _wants_capsule(self, step: _Step, first: _Place) -> bool:
        """Equal on every rank. Collective."""
        monitor = self._run.monitor
        daily_work = first.found.seen.direction == "backward" and step.loss_scale > monitor.overflow_capsule_scale
        if daily_work and not step.fault:
            return False
        folder = _folder(self._run, step)
        others = broadcast_from_rank_0(lambda: sum(path != folder for path in folder.parent.glob("step_*[0-9]")))
        return others < monitor.overflow_capsules

    def _write(self, session: Session, step: _Step, first: _Place, details: dict[str, Any]) -> dict[str, Any]:
        """Run the step once more to keep what the part was given, and write it. Collective.

        Returns:
            Fields for the event. A full disk is reported; training continues.
        """
        found = first.found
        chunk, stage = divmod(first.stage, parallel_state.get_pipeline_model_parallel_world_size())
        here = (
            parallel_state.get_data_parallel_rank() == first.data_rank
            and parallel_state.get_pipeline_model_parallel_rank() == stage
        )
        capture = Capture(session.state.network.chunks[chunk], found.seen, found.micro_batch) if here else None
        self._run_again(session, step, capture.handles if capture else [])
        answer: dict[str, Any] = {}
        if capture is not None:
            tensors = capture.whole()
            tensors["random"] = _random_states(session)
            if parallel_state.get_tensor_model_parallel_rank() == 0:
                answer = _try_to_write(_folder(self._run, step), self._manifest(session, first, details), tensors)
        answers: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(answers, answer)
        return next(filter(None, answers))

    def _manifest(self, session: Session, first: _Place, details: dict[str, Any]) -> dict[str, Any]:
        return {
            **details,
            "seen": asdict(first.found.seen),
            "precision": self._run.train.precision,
            "platform": session.state.platform.name,
            "world_size": torch.distributed.get_world_size(),
            "parallel": self._run.parallel.model_dump(mode="json"),
            "model": self._run.model.model_dump(mode="json"),
            "z_loss": self._run.train.z_loss,
            "versions": versions(),
        }


def _first_places(founds: Sequence[FirstOverflow | None]) -> list[_Place]:
    """Which ranks hold the tensor that left the range first, by rank; the same on every rank. Collective.

    Args:
        founds: of each chunk of this rank's network.
    """
    rank, data_rank = torch.distributed.get_rank(), parallel_state.get_data_parallel_rank()
    stage, stages = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )
    mine = [
        _Place(found, rank, data_rank, chunk * stages + stage)
        for chunk, found in enumerate(founds)
        if found is not None
    ]
    places: list[list[_Place]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(places, mine)
    present = [place for own in places for place in own]
    earliest = min((place.key for place in present), default=None)
    # Tensor-parallel ranks hold parts or copies of it; another data-parallel rank's is of other documents.
    same = [place for place in present if place.key == earliest]
    return [place for place in same if place.data_rank == same[0].data_rank]


def _random_states(session: Session) -> dict[str, torch.Tensor]:
    device = session.state.platform.rng_state()
    states = {"host": torch.get_rng_state()}
    return {**states, "device": device} if isinstance(device, torch.Tensor) else states


def _folder(run: RunConfig, step: _Step) -> Path:
    return run.run_dir / "overflow" / f"step_{step.number}"


def _try_to_write(folder: Path, manifest: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    try:
        size = write_capsule(folder, manifest, tensors)
    except OSError as error:
        log.warning(f"no capsule of this overflow: {describe(error)}")
        return {"capsule": None, "capsule_problem": describe(error)}
    return {"capsule": str(folder), "capsule_bytes": size, "replay": f"kaiyuan replay {folder}"}
