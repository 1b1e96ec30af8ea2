"""A model that generates: an exported folder as it is, a checkpoint as the network that it would be exported as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_kaiyuan.checkpoint.find import Found, Weights, find_checkpoint
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.in_memory import network_of
from megatron_kaiyuan.export.loading import load_network, load_tokenizer
from megatron_kaiyuan.export.run import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Generator:
    """A network that is ready to generate.

    Attributes:
        name: of the model, for people: a run and its step, or a folder.
        context: tokens that it can read, its own among them.
    """

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int


def open_generator(
    path: Path,
    step: int | None,
    tokenizer_folder: Path | None,
    device: Any = "cpu",
    dtype: str = "float32",
    weights: Weights = "model",
) -> Generator:
    """Load a model. For a checkpoint a platform is active and process groups are those of one.

    Args:
        path: a Hugging Face folder, a checkpoint or an average, or a run.
        step: of the run; None: the newest.
        tokenizer_folder: None: the folder's own, which a checkpoint has not.
        dtype: torch's name of the type that the network is held and computed in.
        weights: of a checkpoint, the network's own or their EMA.

    Raises:
        UserError: there is no model, its weights are damaged, no class of transformers is this network, or the
            tokenizer is missing or another one.
    """
    if (path / "config.json").is_file():
        if step is not None:
            raise UserError(f"{path}: is an exported model, of which --step {step} chooses none; leave it out")
        if weights != "model":
            raise UserError(f"{path}: is an exported model, which has no --weights {weights}; leave it out")
        # The tokenizer first: it is read in no time.
        tokenizer = load_tokenizer(tokenizer_folder or path)
        network, name = load_network(path, device, dtype), str(path)
    else:
        found = find_checkpoint(path, step, weights)
        if tokenizer_folder is None:
            raise UserError(f"--tokenizer: {found.name} has none of its own; name the folder with its tokenizer.json")
        tokenizer = load_tokenizer(tokenizer_folder)
        network, name = _from_checkpoint(found, tokenizer_folder, getattr(torch, dtype)).to(device), found.name
    require_ids(name, network.get_input_embeddings().weight.shape[0], tokenizer)
    return Generator(name, network, tokenizer, network.config.max_position_embeddings)


def _from_checkpoint(found: Found, tokenizer_folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    from megatron_kaiyuan.checkpoint.load import load_common, load_weights, model_of

    weights = load_weights(found.folder, found.weights)
    run = load_common(found.folder)["run"]
    check_tokenizer(run.get("tokenizer"), tokenizer_folder, found.folder)
    return network_of(weights, model_of(found.folder, run), dtype)


def require_ids(name: str, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that makes ids beyond the rows of a network's embedding.

    Raises:
        UserError: naming both.
    """
    if len(tokenizer) > rows:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has {len(tokenizer):,} ids, but {name} only {rows:,}; name the "
            "tokenizer that made the corpora it was trained on"
        )
