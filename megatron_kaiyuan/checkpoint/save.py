"""Writing checkpoints, while training continues or not.

    begin    every rank plans its part; a thread of it copies the part to host memory, then writes and hashes the copy
    wait_for_copy  before the next update of the weights, which is the first thing that changes what is copied
    advance  after each step: once no rank is writing any more, rank 0 gets the ranks' parts of the manifest, and a
             thread of it writes metadata and manifest, renames `step_N.<token>.tmp` to `step_N` and moves `latest`
    wait     the same, now: for an exit, or because the next save is due

Who has finished, and who has failed, travels with the votes of each step (`train/votes.py`): a save costs no
collective while training continues, and a rank that has died ends the step, not the save. The temporary name is another
for each save, so that a rank of a job that is being killed cannot write into the save of the next job.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.coverage import require_covered, unchecked_by_torch
from megatron_kaiyuan.checkpoint.part import BackgroundWork, HostCopies, Part
from megatron_kaiyuan.checkpoint.replicas import share_out
from megatron_kaiyuan.checkpoint.verify import Files
from megatron_kaiyuan.cluster.groups import broadcast_from_rank_0, gather_if_any, sum_over_ranks
from megatron_kaiyuan.cluster.many_objects import collector_paused
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.files import fsync_path, put_in_place, temporary_beside
from megatron_kaiyuan.platform.megatron import own_writers, report_writes_to_this_process

COMMON = "common.pt"
# What torch.save puts round each tensor, and what a file system needs for itself.
_BYTES_A_TENSOR = 2048
_SPARE_SHARE, _SPARE_BYTES = 0.02, 1 << 20


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole on the disk.

    Attributes:
        about: what `begin` was given about it.
        bytes: of all files.
        seconds: from `begin` until it was whole.
        stall_seconds: of these, how long training stood still on this rank.
    """

    folder: Path
    about: dict[str, Any]
    bytes: int
    seconds: float
    stall_seconds: float


class _Strategy(TorchDistSaveShardedStrategy):
    """megatron-core's plan of a save, without its forked writers; `planned` is what finishing it needs."""

    def __init__(self) -> None:
        # A state has the same shards at each save: from the third one on, no rank asks the others for their plans.
        super().__init__("torch_dist", 1, thread_count=1, cached_metadata=True)
        self.planned: tuple[Any, Any, Any] | None = None

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any, *_: Any) -> AsyncRequest:
        self.planned = tuple(save_state_dict_ret)
        return AsyncRequest(None, (), [])


@dataclass
class _Flight:
    """One save between `begin` and its end. `task` is this rank's thread, None when it has nothing to do."""

    folder: Path
    temporary: Path
    about: dict[str, Any]
    after: Callable[[], None]
    part: Part
    task: BackgroundWork | None
    writer: Any
    metadata: Any
    started: float
    stall: float = 0.0
    bytes: int = 0
    closing: bool = False


class Saver:
    """The saves of one process, one at a time. Collective: every rank calls the same methods."""

    def __init__(self) -> None:
        self._copies = HostCopies()
        self._strategy = _Strategy()
        self._flight: _Flight | None = None
        self._bytes = 0
        self._checked: Any = None

    @property
    def busy(self) -> bool:
        """This rank is still writing."""
        return self._flight is not None and self._flight.task is not None and self._flight.task.is_alive()

    @property
    def failed(self) -> bool:
        """This rank could not write."""
        return self._error() is not None and not self.busy

    @collector_paused()
    def begin(
        self,
        folder: Path,
        sharded_state: dict[str, Any],
        about: dict[str, Any],
        copy: bool = True,
        started: float | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Start to write the state into `folder`. Common state is taken now, tensors until `wait_for_copy()`.

        Args:
            sharded_state: megatron-core sharded tensors and objects; the rest is common to all ranks.
            about: goes into the manifest.
            copy: the tensors may change after `wait_for_copy()`, else only after `wait()`.
            started: when collecting the state began, on `time.perf_counter()`'s clock; now when None.
            after: called by rank 0's thread when the checkpoint is whole.

        Raises:
            UserError: there is not enough room on the disk.
        """
        if self._flight is not None:
            raise RuntimeError("the save before has not been waited for")
        started = time.perf_counter() if started is None else started
        # `_plan` checks on rank 0 that the shards of all ranks cover each tensor once.
        tensors, common = save_preprocess(sharded_state, validate_access_integrity=False)
        share_out(tensors)
        own = _own_shards(tensors)
        if not self._bytes:
            self._bytes = sum_over_ranks(sum(_bytes_of(shard) for shard in own))
        temporary = _make_folder(folder, self._bytes)
        copies = []
        if copy:
            for shard in own:
                room = self._copies.room_for((shard.key, shard.global_offset), shard.data)
                copies.append((room, shard.data))
                shard.data = room
        writer, metadata, buckets = self._plan(tensors, temporary)
        extra = {COMMON: _serialized(common)} if torch.distributed.get_rank() == 0 else {}
        transforms = [writer.transforms] if hasattr(writer, "transforms") else []
        part = Part(temporary, buckets, transforms, extra, copies)
        flight = _Flight(folder, temporary, about, after, part, BackgroundWork(part.write), writer, metadata, started)
        flight.stall = time.perf_counter() - started
        self._flight = flight

    def wait_for_copy(self) -> None:
        """Return when the tensors of the save that is under way may change. Not collective."""
        if self._flight is not None and not self._flight.part.copied.is_set():
            started = time.perf_counter()
            self._flight.part.copied.wait()
            self._flight.stall += time.perf_counter() - started

    def advance(self, writing: int, failed: int) -> Saved | None:
        """Go on with a save as far as that needs no waiting.

        Args:
            writing: how many ranks were busy, the same number on every rank.
            failed: how many ranks had failed.

        Returns:
            The checkpoint, once it is whole.

        Raises:
            UserError: a rank could not write.
        """
        if self._flight is None or (writing and not failed):
            return None
        if failed:
            self._check()
        return self._go_on(self._flight)

    def wait(self) -> Saved | None:
        """Finish the save that is under way, if there is one.

        Raises:
            UserError: a rank could not write.
        """
        saved = None
        while flight := self._flight:
            started = time.perf_counter()
            if flight.task is not None:
                flight.task.join()
            self._check()
            flight.stall += time.perf_counter() - started
            saved = self._go_on(flight)
        return saved

    def _plan(self, tensors: dict[str, Any], temporary: Path) -> tuple[Any, Any, list[Any]]:
        """megatron-core's writer, the metadata (on rank 0) and this rank's files with their items, in host memory."""
        report_writes_to_this_process()
        with unchecked_by_torch():
            self._strategy.async_save(tensors, str(temporary), **own_writers())
        assert self._strategy.planned is not None
        (writer, metadata, _), self._strategy.planned = self._strategy.planned, None
        if metadata is not None and metadata is not self._checked:
            require_covered(metadata)
            self._checked = metadata
        buckets, writer.write_buckets = writer.write_buckets or [], []
        return writer, metadata, writer.preload_tensors(buckets, non_blocking=False)

    @collector_paused()
    def _go_on(self, flight: _Flight) -> Saved | None:
        """From writing to closing, or from closing to the end; no rank is busy."""
        if flight.closing:
            self._flight = None
            return Saved(flight.folder, flight.about, flight.bytes, time.perf_counter() - flight.started, flight.stall)
        started = time.perf_counter()
        flight.closing, flight.task = True, None
        everyone: list[Any] | None = None
        if torch.distributed.get_rank() == 0:
            everyone = [None] * torch.distributed.get_world_size()
        torch.distributed.gather_object((flight.part.results, flight.part.files), everyone)
        if everyone is not None:
            results = [result for result, _ in everyone]
            files = {name: entry for _, part in everyone for name, entry in part.items()}
            flight.bytes = sum(entry["bytes"] for entry in files.values())
            flight.task = BackgroundWork(lambda: _close(flight, results, files))
        flight.stall += time.perf_counter() - started
        return None

    def _error(self) -> Exception | None:
        return self._flight.task.error if self._flight is not None and self._flight.task is not None else None

    def _check(self) -> None:
        """Raise on every rank what any rank's thread has met."""
        assert self._flight is not None
        error = self._error()
        message = None if error is None else _describe(error)
        messages = gather_if_any(message, message is not None)
        causes = [f"rank {rank}: {text}" for rank, text in enumerate(messages) if text]
        if not causes:
            return
        flight, self._flight = self._flight, None
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(flight.temporary, ignore_errors=True)
        raise UserError(
            f"{flight.folder}: the checkpoint could not be written ({'; '.join(causes)}); older ones are "
            "as they were; make room or choose another run_dir, and start again",
            every_rank=True,
        )


def save_folder(folder: Path, sharded_state: dict[str, Any], **about: Any) -> Saved:
    """Write a whole checkpoint folder and wait for it; on failure `folder` is as it was before. Collective.

    Raises:
        UserError: the files could not be written, for a full disk say.
    """
    saver = Saver()
    saver.begin(folder, sharded_state, about, copy=False)
    saved = saver.wait()
    assert saved is not None
    return saved


def _close(flight: _Flight, results: list[Any], files: Files) -> None:
    """Make a checkpoint of the ranks' parts: metadata, manifest, name."""
    # Every rank's plan, which megatron-core keeps for caching it: half of the file, and of no use here.
    flight.metadata.__dict__.pop("all_local_plans", None)
    flight.writer.finish(flight.metadata, results)
    save_config(CheckpointingConfig("torch_dist", 1), str(flight.temporary))
    for path in flight.temporary.iterdir():
        if path.name not in files:
            fsync_path(path)
    layout.write_manifest(flight.temporary, files, **flight.about)
    fsync_path(flight.temporary)
    if layout.step_of(flight.folder.name) is not None and flight.folder.exists():
        # A step was whole once: it is kept. Any other folder is an average that is made again.
        layout.set_aside(flight.folder, "replaced")
    put_in_place(flight.temporary, flight.folder)
    flight.after()


def _make_folder(folder: Path, needed: int) -> Path:
    """A new temporary folder, of one name on every rank, on a disk that has room for `needed` bytes in all."""

    def make() -> str:
        folder.parent.mkdir(parents=True, exist_ok=True)
        require_room(folder, needed)
        temporary = temporary_beside(folder)
        temporary.mkdir()
        return str(temporary)

    return Path(broadcast_from_rank_0(make))


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        UserError: with the numbers.
    """
    disk = os.statvfs(folder.parent)
    wanted, free = int(needed * (1 + _SPARE_SHARE)) + _SPARE_BYTES, disk.f_bavail * disk.f_frsize
    if wanted > free:
        raise UserError(
            f"{folder}: the checkpoint needs {wanted / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are free there; make "
            "room (checkpoint.keep_last says how many are kept), or choose another run_dir",
            every_rank=True,
        )


def _own_shards(tensors: dict[str, Any]) -> list[ShardedTensor]:
    """The shards that this rank writes."""
    shards = [value for value in nested_values(tensors) if isinstance(value, ShardedTensor)]
    return [shard for shard in shards if is_main_replica(shard.replica_id)]


def _bytes_of(shard: ShardedTensor) -> int:
    return shard.data.numel() * shard.data.element_size() + _BYTES_A_TENSOR


def _serialized(common: dict[str, Any]) -> io.BytesIO:
    content = io.BytesIO()
    torch.save(common, content)
    return content


def _describe(error: Exception) -> str:
    if isinstance(error, (UserError, OSError)):
        return describe(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
