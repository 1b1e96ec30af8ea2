"""Megatron weights into a folder that transformers loads, in one of three formats (`formats.py`)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_kaiyuan.checkpoint.huggingface import EXPORT_FORMAT
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import require
from megatron_kaiyuan.export.convert import check_weights, in_folder, is_rewritten, named
from megatron_kaiyuan.export.formats import (
    DTYPES,
    MODELING,
    Format,
    choose_format,
    empty_network,
    transformers_config,
)
from megatron_kaiyuan.export.loading import load_tokenizer, quiet_transformers
from megatron_kaiyuan.export.older_names import add_older_names
from megatron_kaiyuan.export.remainders import Remainders
from megatron_kaiyuan.export.shards import Described, ShardedFolder
from megatron_kaiyuan.export.tokenizer import SpecialIds, copy_tokenizer, special_ids
from megatron_kaiyuan.export.weights import Weights, WeightsInMemory, dtype_of
from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.outputs import Output, check, claim, recorded_folder, write_record
from megatron_kaiyuan.progress import Progress

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FORMAT, EXPORTED = EXPORT_FORMAT, "an exported model"


@dataclass(frozen=True)
class Form:
    """How to write an export.

    Attributes:
        format: None: the class of transformers that the network is.
        dtype: of the stored weights.
        max_shard_bytes: of a file of weights; a larger tensor has one for itself.
    """

    format: Format | None = None
    dtype: str = "float32"
    max_shard_bytes: int = 5_000_000_000


def export_model(
    weights: Mapping[str, torch.Tensor] | Weights,
    model: ModelConfig,
    destination: Path,
    tokenizer_folder: Path | None,
    identity: str = "",
    force: bool = False,
    form: Form = Form(),
    card: str = "",
    **about: Any,
) -> Path:
    """Write a Hugging Face model folder: safetensors, config, generation config, tokenizer, model card.

    transformers 4 and 5 read it alike.

    Args:
        weights: full tensors by megatron-core name, as `load_weights` gives them: layers stacked along a first axis, or
            numbered in the name; or what gives them piece by piece.
        destination: a new folder, or an earlier export of the same `identity`; its `manifest.json` lists its files.
        tokenizer_folder: a folder that `AutoTokenizer` loads; its end-of-text id becomes the end of generation.
        identity: fingerprint of what is exported.
        force: an earlier export of another identity may be replaced.
        card: README.md; "": none.
        about: recorded in the manifest, besides what import needs.

    Returns:
        `destination`.

    Raises:
        UserError: transformers is missing, the format does not represent the model, the tokenizer does not fit, the
            weights are not those of `model`, or `destination` holds something else.
    """
    require("transformers", extra="eval", purpose="the Hugging Face export")
    chosen = choose_format(model, form.format, form.dtype)
    ids = special_ids(tokenizer_folder, model) if tokenizer_folder else SpecialIds()
    config = transformers_config(model, chosen, ids.end, form.dtype)
    expected = {
        name: Described(tuple(tensor.shape), DTYPES[form.dtype])
        for name, tensor in empty_network(config, chosen).state_dict().items()
    }
    place = Output(destination, EXPORTED)
    check(place, identity, recorded_folder(FORMAT), force, sum(tensor.nbytes for tensor in expected.values()))
    source = WeightsInMemory(weights, model) if isinstance(weights, Mapping) else weights
    check_weights(source, {name: tensor.shape for name, tensor in expected.items()}, model)
    record = {
        "written_as": chosen,
        "dtype": form.dtype,
        "of_dtype": str(dtype_of(source)).removeprefix("torch."),
        "model": model.model_dump(mode="json"),
    }
    with (
        claim(place, identity, recorded_folder(FORMAT), force=force),
        atomic_path(place.path, replace_folder=True) as new,
    ):
        new.mkdir()
        _write_configs(new, config, chosen, ids)
        _write_weights(new, source, expected, chosen, model, form)
        if tokenizer_folder:
            copy_tokenizer(tokenizer_folder, new, ids)
        add_older_names(new)
        if tokenizer_folder:
            load_tokenizer(new)
        if card:
            (new / "README.md").write_text(card, encoding="utf-8")
        write_record(new, FORMAT, identity, export=record, **about)
    return destination


def _write_weights(
    folder: Path, source: Weights, expected: Mapping[str, Described], chosen: Format, model: ModelConfig, form: Form
) -> None:
    shards, remainders = ShardedFolder(folder, expected, form.max_shard_bytes), Remainders(model)
    size = sum(tensor.nbytes for tensor in expected.values())
    with contextlib.closing(shards), Progress("export", size, "B") as progress:
        for piece in source.pieces():
            for name, tensor in named(piece, model).items():
                stored = in_folder(name, tensor, chosen, DTYPES[form.dtype], model)
                shards.write(name, stored, piece.first_row * stored[0].numel())
                if is_rewritten(name, tensor, chosen, model):
                    remainders.add(name, expected[name].shape, tensor, stored, piece.first_row)
                progress.advance(stored.nbytes)
    remainders.save(folder)


def _write_configs(folder: Path, config: PretrainedConfig, chosen: Format, ids: SpecialIds) -> None:
    from transformers import GenerationConfig

    class_name = {"kaiyuan": "Kaiyuan", "gemma3": "Gemma3", "qwen3": "Qwen3"}[chosen]
    config.architectures = [f"{class_name}ForCausalLM"]
    with quiet_transformers():
        config.save_pretrained(folder)
        GenerationConfig(eos_token_id=ids.end, pad_token_id=ids.padding).save_pretrained(folder)
    if chosen == "kaiyuan":
        shutil.copyfile(Path(__file__).with_name(f"{MODELING}.py"), folder / f"{MODELING}.py")
