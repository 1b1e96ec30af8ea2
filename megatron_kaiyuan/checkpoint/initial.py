"""Weights for a new run out of something finished: one of our checkpoints or averages, or a Hugging Face folder.

Weights only: optimizer, position and schedule begin again. What the source lacks and the network has (the gains of the
norms that close a sub-layer, rows of the vocabulary's padding) keeps its initial value, and every such difference
is reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.choose import verify_together
from megatron_kaiyuan.checkpoint.copy_in import copy_into
from megatron_kaiyuan.checkpoint.huggingface import HuggingFaceFolder
from megatron_kaiyuan.checkpoint.load import load_common, load_sharded, model_of, stored_tensors
from megatron_kaiyuan.cluster.groups import agree_on_error
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.data.tokenizer_identity import Tokenizer, compare_folder, difference
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.model.build import Network
from megatron_kaiyuan.network import FUNCTION_FIELDS, switched_weights, weight_of

_SHAPE_FIELDS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "vocab_size",
    "qk_layernorm",
)


def initialise(network: Network, model: ModelConfig, source: Path, tokenizer: Tokenizer | None = None) -> list[str]:
    """Put the weights of `source` into a network of any layout of ranks. Collective.

    The optimizer's main weights are the caller's to renew.

    Args:
        tokenizer: of the corpora to train on; None: unknown.

    Returns:
        What is not as in the source, one line each.

    Raises:
        UserError: the source is missing or damaged, or of other shapes or another tokenizer.
    """
    kind = agree_on_error(lambda: kind_of(source))
    if kind == "folder":
        folder = agree_on_error(lambda: HuggingFaceFolder(source))
        agree_on_error(lambda: folder.verify() if torch.distributed.get_rank() == 0 else None)
        notes = agree_on_error(lambda: [*folder.compare(model), *_foreign_tokenizer(source, tokenizer)])
        agree_on_error(lambda: [copy_into(chunk, folder, model) for chunk in network.chunks])
        return notes
    if problems := verify_together(source):
        raise UserError(f"init_from: {problems[0]}", every_rank=True)
    notes = agree_on_error(lambda: _compare(source, model, tokenizer))
    _load_what_is_there(network, model, source)
    return notes


def kind_of(source: Path) -> str:
    """`checkpoint`, or `folder`: one of Hugging Face.

    Raises:
        UserError: it is neither.
    """
    # An exported folder has a manifest too.
    if (source / "config.json").is_file():
        return "folder"
    if (source / layout.MANIFEST).is_file():
        return "checkpoint"
    if steps := layout.steps(source):
        raise UserError(f"init_from: {source} is a run; name one of its steps, {layout.step_folder(source, steps[-1])}")
    raise UserError(
        f"init_from: {source} is neither a checkpoint (no {layout.MANIFEST}) nor a Hugging Face folder (no config.json)"
    )


def _foreign_tokenizer(source: Path, tokenizer: Tokenizer | None) -> list[str]:
    """A note only: a tokenizer.json may have been written again with the same ids."""
    if tokenizer is None or compare_folder(tokenizer, source) != "other":
        return []
    return ["its tokenizer file is not the one that made the corpora: does each id mean the same there?"]


def _compare(source: Path, model: ModelConfig, tokenizer: Tokenizer | None) -> list[str]:
    run = load_common(source)["run"]
    saved = model_of(source, run)
    differences = [
        f"model.{name} is {getattr(saved, name)!r} there, {getattr(model, name)!r} here"
        for name in _SHAPE_FIELDS
        if getattr(saved, name) != getattr(model, name)
    ]
    if different := difference(run.get("tokenizer"), tokenizer):
        differences.append(f"another tokenizer made the corpora here ({different})")
    there, here = switched_weights(saved), switched_weights(model)
    differences += [
        f"model.{switch} is on there, off here: its gains would be lost"
        for switch in there
        if switch not in here and switch not in _SHAPE_FIELDS
    ]
    if differences:
        raise UserError(f"init_from: {source}: {'; '.join(differences)}")
    notes = [
        f"model.{name} was {getattr(saved, name)!r} there, is {getattr(model, name)!r} here"
        for name in FUNCTION_FIELDS
        if getattr(saved, name) != getattr(model, name)
    ]
    return notes + [
        f"the weights of model.{switch}, which was off there, start with gain {weights[0].initial:g}"
        for switch, weights in here.items()
        if switch not in there
    ]


def _load_what_is_there(network: Network, model: ModelConfig, source: Path) -> None:
    """Load every weight; only those that a field of `model` adds may be missing in the source."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    described = network.sharded_state_dict(metadata={"dp_cp_group": group})
    known = stored_tensors(source)
    wanted = {name: value for name, value in described.items() if not _is_left_out(value, known, model)}
    network.load_state_dict(load_sharded(source, {"network": wanted})["network"], strict=False)


def _is_left_out(value: Any, known: dict[str, ShardedTensor], model: ModelConfig) -> bool:
    if isinstance(value, ShardedObject):
        return True
    assert isinstance(value, (ShardedTensor, ShardedTensorFactory))
    return value.key not in known and bool(weight_of(value.key, model).switch)


def reload_main_weights(optimizer: Any) -> None:
    """Let the optimizer take its FP32 main weights from the network's."""
    with torch.no_grad():
        optimizer.reload_model_params()
