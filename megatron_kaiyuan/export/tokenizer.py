"""The tokenizer of an exported folder, and the ids of its end of text and its padding."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.loading import load_tokenizer
from megatron_kaiyuan.files import read_json, write_json

_CONFIG = "tokenizer_config.json"
_FILES = (
    "tokenizer.json",
    _CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class SpecialIds:
    """Ids that generation needs.

    Attributes:
        end: of the end of text; None: without a tokenizer.
        padding: the tokenizer's own, else that of the end of text: batches of prompts of several lengths are padded,
            and their mask keeps the padding out.
        padding_token: its text, where the tokenizer names none itself.
    """

    end: int | None = None
    padding: int | None = None
    padding_token: str | None = None


def special_ids(folder: Path, model: ModelConfig) -> SpecialIds:
    """Those of a tokenizer's folder.

    Raises:
        UserError: there is no tokenizer, or it has more ids than the model has rows.
    """
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.padded_vocab_size:
        raise UserError(
            f"{folder}: {len(tokenizer)} ids, but the model has {model.padded_vocab_size}; "
            "name the tokenizer that the corpus was made with"
        )
    end = int(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        return SpecialIds(end, int(tokenizer.pad_token_id))
    return SpecialIds(end, end, str(tokenizer.eos_token))


def copy_tokenizer(source: Path, folder: Path, ids: SpecialIds) -> None:
    """Copy a tokenizer's files, and let it name its padding."""
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if ids.padding_token is not None:
        path = folder / _CONFIG
        config = read_json(path, "tokenizer configuration") if path.is_file() else {}
        write_json(path, {**config, "pad_token": ids.padding_token})
