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
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from megatron_kaiyuan.checkpoint.common_form import CommonForm
from megatron_kaiyuan.checkpoint.find import Weights
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
# Where each kind of weights of the same network lies among the tensors.
_PREFIXES: dict[Weights, str] = {"model": "", "ema": f"{OPTIMIZER_PREFIX}state.ema."}


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

    Args:
        weights: only these, under the network's own names; None: every tensor, the optimizer's among them.

    Attributes:
        tensors: names, shapes and types, without values.

    Raises:
        UserError: the checkpoint holds no such weights.
    """

    def __init__(self, folder: Path, weights: Weights | None = None):
        self._folder = folder
        with loading(folder, Exception), removed_meanwhile(folder):
            self._metadata = require_plain(folder)
            found: dict[str, ShardedTensor] = TorchDistLoadShardedStrategy().load_tensors_metadata(
                folder, self._metadata
            )
        self.tensors = found if weights is None else _only(found, weights)
        if not self.tensors and weights == "ema":
            raise UserError(
                f"{folder}: holds no EMA of the weights (ema.decay was not set when it was saved); "
                "name a step with one, or leave out --weights ema"
            )

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return some of them by name."""
        return self.read_pieces({name: self.tensors[name] for name in names})

    def cut(self, name: str) -> list[ShardedTensor]:
        """Return a tensor in the pieces that it lies in, as far as they follow each other along the first axis.

        Layers are stacked along it: a piece of a matrix of the layers is that of one layer.
        """
        tensor = self.tensors[name]
        chunks: Any = getattr(self._metadata.state_dict_metadata[tensor.key], "chunks", ())
        starts = sorted({int(chunk.offsets[0]) for chunk in chunks}) if tensor.global_shape else []
        if not starts:
            return [tensor]
        stops = [*starts[1:], tensor.global_shape[0]]
        return [rows_of(tensor, start, stop) for start, stop in zip(starts, stops, strict=True)]

    def read_pieces(self, wanted: dict[str, ShardedTensor]) -> dict[str, torch.Tensor]:
        """Return what is described, by the same names; the values of `wanted` stay as they are."""
        wanted = {name: piece.without_data() for name, piece in wanted.items()}
        with (
            loading(self._folder, Exception, CheckpointException),
            removed_meanwhile(self._folder),
            reading_without_other_ranks(self._folder, self._metadata),
        ):
            # Every process loads every tensor whole, which the check of non-overlapping shards would refuse.
            loaded = dist_checkpointing.load(dict(wanted), str(self._folder), validate_access_integrity=False)
        return {name: loaded[name] for name in wanted}


def _only(tensors: dict[str, ShardedTensor], weights: Weights) -> dict[str, ShardedTensor]:
    """Return one kind of weights by the names of the network."""
    prefix = _PREFIXES[weights]
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in mine.items() if not name.startswith(OPTIMIZER_PREFIX)}


def rows_of(tensor: ShardedTensor, start: int, stop: int) -> ShardedTensor:
    """Return the description of a range of a tensor along its first axis."""
    return ShardedTensor(
        key=tensor.key,
        data=None,
        dtype=tensor.dtype,
        local_shape=(stop - start, *tensor.global_shape[1:]),
        global_shape=tensor.global_shape,
        global_offset=(start, *(0,) * (len(tensor.global_shape) - 1)),
        axis_fragmentations=None,
    )


def stored_tensors(folder: Path) -> dict[str, ShardedTensor]:
    """Names, shapes and types of all tensors, without their values. The caller has verified `folder`."""
    return Stored(folder).tensors


def load_weights(folder: Path, weights: Weights = "model") -> dict[str, torch.Tensor]:
    """All weights as whole tensors under megatron-core's names, layers stacked in the first dimension.

    Args:
        weights: the network's own, or their EMA.

    Raises:
        UserError: the checkpoint is missing or damaged, or holds no EMA.
    """
    require_whole(folder)
    stored = Stored(folder, weights)
    return stored.read(stored.tensors)


def require_whole(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest, in this process.

    Raises:
        UserError: it is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: checkpoint not found")
    with loading(folder, Exception, CheckpointException), removed_meanwhile(folder):
        verify(folder)


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


def load_into(network: MegatronModule, folder: Path, weights: Weights = "model") -> None:
    """Load the weights of any checkpoint, averaged ones included, into a network of any layout. Collective.

    The caller has verified `folder`. Objects beside the tensors, which megatron-core keeps for Transformer
    Engine's FP8 state, are left out: an averaged checkpoint has none.
    """
    metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    described = network.sharded_state_dict(metadata=metadata)
    tensors = {key: value for key, value in described.items() if not isinstance(value, ShardedObject)}
    add_prefix_for_sharding(tensors, _PREFIXES[weights])
    network.load_state_dict(load_sharded(folder, {"network": tensors})["network"])


def whole(weights: dict[str, torch.Tensor]) -> dict[str, ShardedTensor]:
    """Whole tensors as one process's shards, in the form that `load_weights` reads back."""
    return {key: ShardedTensor.from_rank_offsets(key, tensor) for key, tensor in weights.items()}
