"""Open an exported folder with stock transformers, in FP32, without network and without progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_kaiyuan.errors import UserError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_network(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """The exported model in FP32, in evaluation mode.

    Raises:
        UserError: the folder is missing, or transformers cannot load it.
    """
    transformers = require("transformers", extra="eval", purpose="loading an exported model")
    _check_folder(folder)
    try:
        with quiet_transformers():
            network = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: transformers cannot load this model ({error}); export it again") from error
    return network.to(device).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in an exported folder.

    Raises:
        UserError: there is none, or it names no end-of-text token.
    """
    transformers = require("transformers", extra="eval", purpose="loading a tokenizer")
    _check_folder(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: transformers cannot load a tokenizer here ({error}); export with one") from error
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
