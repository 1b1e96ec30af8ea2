"""Reading checkpoints: whole training states on every rank, or plain weights in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from megatron_kaiyuan.checkpoint.common_form import CommonForm
from megatron_kaiyuan.checkpoint.layout import MANIFEST
from megatron_kaiyuan.checkpoint.plain import COMMON, require_plain
from megatron_kaiyuan.checkpoint.replicas import ReadOnce
from megatron_kaiyuan.checkpoint.verify import read_manifest, verify
from megatron_kaiyuan.cluster.groups import broadcast_from_rank_0, scatter_from_rank_0
from megatron_kaiyuan.cluster.many_objects import collector_paused
from megatron_kaiyuan.config import ModelConfig, parse
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.forms import require_form
from megatron_kaiyuan.platform.megatron import reading_without_other_ranks

OPTIMIZER_PREFIX = "optimizer."


def load_common(folder: Path, form: type[CommonForm] = CommonForm) -> dict[str, Any]:
    """What is the same on every rank: counters, configuration, versions. The caller has verified `folder`.

    Args:
        form: what must be there.

    Raises:
        UserError: it is not what a run writes, see `common_form.py`.
    """
    with loading(folder, Exception), removed_meanwhile(folder):
        require_plain(folder)
        common = dist_checkpointing.load_common_state_dict(str(folder))
        require_form(folder / COMMON, common, form, "use another checkpoint")
        return common


def model_of(folder: Path, run: dict[str, Any]) -> ModelConfig:
    """The network of a checkpoint's run.

    Args:
        run: of `load_common(folder)`.

    Raises:
        UserError: this version builds no such network.
    """
    model = run["config"].get("model")
    return parse(ModelConfig, model if isinstance(model, dict) else {}, source=f"{folder / COMMON}: model")


@collector_paused()
def load_sharded(folder: Path, sharded_state: dict[str, Any], by_rank: str = "random") -> dict[str, Any]:
    """Load into the layout that `sharded_state` describes, whatever layout wrote the checkpoint. Collective.

    Rank 0 reads what describes the checkpoint, each shard is read by one rank for all that hold it.

    Args:
        by_rank: what of the common state is a list with an element for each rank that wrote. In its place each rank
            receives its own element; None where another number of ranks wrote the checkpoint, or it holds no list.
    """
    metadata: Metadata | None = None
    elements: Any = None

    def described() -> dict[str, Any]:
        nonlocal metadata, elements
        with loading(folder, Exception), removed_meanwhile(folder):
            metadata = require_plain(folder)
            common = dist_checkpointing.load_common_state_dict(str(folder))
        elements = common.pop(by_rank, None)
        return common

    common = broadcast_from_rank_0(described)
    common[by_rank] = scatter_from_rank_0(lambda: _one_for_each_rank(elements))
    return ReadOnce(metadata, partial(_reading, folder)).restore(sharded_state, common, folder)


def _one_for_each_rank(elements: Any) -> list[Any]:
    ranks = torch.distributed.get_world_size()
    return elements if isinstance(elements, list) and len(elements) == ranks else [None] * ranks


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    with loading(folder, CheckpointException, CheckpointingException), removed_meanwhile(folder):
        yield


class Stored:
    """The tensors of a checkpoint, each read whole when it is asked for, in this process alone.

    The caller has verified `folder`.

    Attributes:
        tensors: names, shapes and types, without values.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        with loading(folder, Exception), removed_meanwhile(folder):
            self._metadata = require_plain(folder)
            self.tensors: dict[str, ShardedTensor] = TorchDistLoadShardedStrategy().load_tensors_metadata(
                folder, self._metadata
            )

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return some of them by name."""
        return self._load({name: self.tensors[name] for name in names})

    def read_pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Read a tensor as it is stored along its first axis, which for stacked layers is the layer.

        Returns:
            Pieces in order, each with its first index: memory holds one at a time.
        """
        whole = self.tensors[name]
        chunks = self._metadata.state_dict_metadata[name].chunks
        starts = sorted({chunk.offsets[0] for chunk in chunks if len(chunk.offsets)}) or [0]
        rows = whole.global_shape[0] if whole.global_shape else 0
        for start, end in zip(starts, [*starts[1:], rows], strict=True):
            shape = (end - start, *whole.global_shape[1:])
            offset = (start, *(0 for _ in whole.global_shape[1:]))
            data = torch.empty(shape, dtype=whole.dtype)
            piece = ShardedTensor(name, data, whole.dtype, shape, whole.global_shape, offset, None)
            yield start, self._load({name: piece})[name]

    def _load(self, wanted: dict[str, ShardedTensor]) -> dict[str, torch.Tensor]:
        with (
            loading(self._folder, Exception, CheckpointException),
            removed_meanwhile(self._folder),
            reading_without_other_ranks(self._folder, self._metadata),
        ):
            # Every process loads every tensor whole, which the check of non-overlapping shards would refuse.
            loaded = dist_checkpointing.load(dict(wanted), str(self._folder), validate_access_integrity=False)
        return {name: loaded[name] for name in wanted}


def stored_tensors(folder: Path) -> dict[str, ShardedTensor]:
    """Names, shapes and types of all tensors, without their values. The caller has verified `folder`."""
    return Stored(folder).tensors


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights as whole tensors under megatron-core's names, layers stacked in the first dimension.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: checkpoint not found")
    with loading(folder, Exception, CheckpointException), removed_meanwhile(folder):
        verify(folder)
    stored = Stored(folder)
    return stored.read(name for name in stored.tensors if not name.startswith(OPTIMIZER_PREFIX))


@contextlib.contextmanager
def loading(folder: Path, *kinds: type[BaseException]) -> Iterator[None]:
    """One line where the libraries cannot read files whose checksums are right: another program wrote them."""
    try:
        yield
    except (UserError, OSError):
        raise
    except kinds as error:
        raise UserError(
            f"{folder}: cannot be loaded although its files are whole ({type(error).__name__}: {excerpt(error)}); use "
            "another checkpoint, or the version that wrote it"
        ) from error


@contextlib.contextmanager
def removed_meanwhile(folder: Path) -> Iterator[None]:
    """One line instead of a trace where a run that trains prunes the checkpoint while it is read."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        # torch (whose error is not an Exception), megatron-core and the unpicklers each have one of their own; a file
        # that is missing beside a manifest has been named by an error of ours.
        named = [] if isinstance(error, UserError) else _named_files(folder)
        gone = [name for name in (MANIFEST, *named) if not (folder / name).exists()]
        if gone:
            raise UserError(
                f"{folder / gone[0]}: was removed while it was read, as a run does with old checkpoints; name a newer "
                "one, or keep more (checkpoint.keep_last)"
            ) from error
        raise


def _named_files(folder: Path) -> list[str]:
    try:
        return list(read_manifest(folder)["files"])
    except (UserError, OSError):
        return []


def load_into(network: MegatronModule, folder: Path) -> None:
    """Load the weights of any checkpoint, averaged ones included, into a network of any layout. Collective.

    The caller has verified `folder`. Objects beside the tensors, which megatron-core keeps for Transformer
    Engine's FP8 state, are left out: an averaged checkpoint has none.
    """
    metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    described = network.sharded_state_dict(metadata=metadata)
    tensors = {key: value for key, value in described.items() if not isinstance(value, ShardedObject)}
    network.load_state_dict(load_sharded(folder, {"network": tensors})["network"])


def whole(weights: dict[str, torch.Tensor]) -> dict[str, ShardedTensor]:
    """Whole tensors as one process's shards, in the form that `load_weights` reads back."""
    return {key: ShardedTensor.from_rank_offsets(key, tensor) for key, tensor in weights.items()}
