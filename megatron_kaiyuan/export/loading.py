"""Open an exported folder with stock transformers, without network and without progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_kaiyuan.checkpoint.huggingface import verify_weights
from megatron_kaiyuan.errors import UserError, excerpt, require
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.tokenizer_trial import is_panic, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBES = ("Hello, world", "  two  spaces\n\ttab", "def f(x):\n    return x ** 2\n", "你好，世界。", "3.14 ≠ 22/7")


def load_network(folder: Path, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """The exported model in evaluation mode.

    Args:
        dtype: torch's name of the type that it is held and computed in; `auto`: as it was exported.

    A folder of `--format kaiyuan` is built from this package's class: no Python file of a folder is read.

    Raises:
        UserError: the folder is missing, its weights are not those that export wrote, or transformers cannot load it.
    """
    transformers = require("transformers", extra="eval", purpose="loading an exported model")
    _check_folder(folder)
    verify_weights(folder)
    require_layers(folder)
    know_kaiyuan()
    try:
        with quiet_transformers():
            network, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    # Besides OSError and ValueError, what its classes make of a field of another type.
    except Exception as error:
        why = f"{type(error).__name__}: {excerpt(error)}"
        raise UserError(f"{folder}: transformers cannot load this model ({why}); export it again") from error
    # transformers gives them random values.
    if absent := sorted(report["missing_keys"]):
        raise UserError(f"{folder}: its weights lack {excerpt(absent[0])}, which config.json asks for; export it again")
    network = network.to(device).eval()
    require_forward(folder, network)
    return network


def know_kaiyuan() -> None:
    """Let transformers build folders of `--format kaiyuan` from this package's class, whatever code they bring."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from megatron_kaiyuan.export import modeling_kaiyuan as ours

    AutoConfig.register(ours.KaiyuanConfig.model_type, ours.KaiyuanConfig, exist_ok=True)
    AutoModel.register(ours.KaiyuanConfig, ours.KaiyuanModel, exist_ok=True)
    AutoModelForCausalLM.register(ours.KaiyuanConfig, ours.KaiyuanForCausalLM, exist_ok=True)


def require_forward(folder: Path, network: PreTrainedModel, token: int = 0, length: int = 2) -> torch.Tensor:
    """Run a network once: a configuration that fits the weights may still ask for what cannot be computed.

    Args:
        token: the id that the input repeats `length` times.

    Returns:
        The logits.

    Raises:
        UserError: the network cannot be run.
    """
    try:
        with torch.inference_mode():
            logits: torch.Tensor = network(torch.full((1, length), token, device=network.device)).logits
    # Whatever its layers make of the sizes, ranges and names in config.json.
    except Exception as error:
        why = f"{type(error).__name__}: {excerpt(error)}"
        raise UserError(
            f"{folder}: its network cannot be run as config.json describes it ({why}); copy the folder again"
        ) from error
    return logits


def require_layers(folder: Path) -> None:
    """Refuse a configuration of more layers than there are tensors: transformers would build them all first.

    Raises:
        UserError: naming the field of `config.json`.
    """
    safetensors = require("safetensors", extra="eval", purpose="loading a model")
    path, tensors = folder / "config.json", 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                tensors += len(opened.keys())
        except Exception as error:
            raise UserError(f"{file}: cannot be read ({excerpt(error)}); copy it again") from error
    left = [read_json(path, "Hugging Face configuration")]
    while tensors and left:
        section = left.pop()
        for name, value in section.items() if isinstance(section, dict) else ():
            if isinstance(value, int) and "layer" in name and value > tensors:
                raise UserError(f"{path}: {name} is {value}, but there are {tensors} tensors; copy the folder again")
            left += [value] if isinstance(value, dict) else []


def tokenizer_file(folder: Path) -> Path:
    """The file of a Hugging Face tokenizer.

    Raises:
        UserError: there is none in the folder.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file}: tokenizer not found; name a folder with a Hugging Face tokenizer")
    return file


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, checked against its own tokenizer.json.

    Beside a `config.json` transformers may choose the tokenizer class of that architecture, which normalises text
    in its own way, or make an empty tokenizer when there are no files; both are silent.

    Raises:
        UserError: there is none, transformers reads it differently, or it names no end-of-text token.
    """
    transformers = require("transformers", extra="eval", purpose="loading a tokenizer")
    file = tokenizer_file(folder)
    know_kaiyuan()
    try:
        plain = read_tokenizer(file, file.read_text(encoding="utf-8"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UserError:
        raise
    # tokenizers raises bare Exceptions for a damaged file, and a panic beside them.
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise UserError(f"{folder}: transformers cannot load the tokenizer here ({excerpt(error)})") from error
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False) != plain.encode(text, add_special_tokens=False).ids:
            raise UserError(
                f"{folder}: transformers gives other ids than tokenizer.json does for {text!r}; "
                "set tokenizer_class to PreTrainedTokenizerFast in tokenizer_config.json"
            )
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer names no end-of-text token; set eos_token in tokenizer_config.json")
    return tokenizer


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars for reading or writing model shards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported model here (config.json is missing); run kaiyuan export first")
