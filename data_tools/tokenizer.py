"""A tokenizer read from `tokenizer.json`: lossless, and blind to special tokens that are spelt out in a text."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_tools.corpus import token_dtype
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

END_OF_DOCUMENT = "<|endoftext|>"
_USUAL_ENDS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<EOD>")


class TextTokenizer:
    """Text to ids and back.

    Args:
        path: a `tokenizer.json` of Hugging Face tokenizers, or the folder that holds it.
        eod_token: the token that ends a document; None takes the `eos_token` of the `tokenizer_config.json` beside
            it, else the first usual one that the vocabulary has.
        engine: "auto" encodes with the reference library until `prove` has found a faster one with equal ids.

    Attributes:
        engine: the engine in use; a worker process that is given this name encodes as this process does.
        vocabulary: id of each token.
        vocab_size: the largest id + 1; a sparse vocabulary has fewer entries.
        eod_id: id that ends a document. No text can contain it: spelt out, it becomes ordinary tokens.

    Raises:
        UserError: the file is missing or no tokenizer, or the end-of-document token is unknown.
    """

    def __init__(self, path: Path, eod_token: str | None = None, engine: str = "auto"):
        if engine not in ("auto", "reference"):
            raise UserError(f"--engine {engine}: is not known; use auto or reference")
        self.engine = "reference"
        self.path = path / "tokenizer.json" if path.is_dir() else path
        self._tokenizer = _load(self.path)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self.vocabulary.values()) + 1
        self.eod_id = self.vocabulary[_end_of_document(self.path, self.vocabulary, eod_token)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without any token before or after it."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_flat(self, texts: Sequence[str], append_eod: bool) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Ids of all texts, one after another, in the type Megatron stores them in, and how many each text has.

        With `append_eod` the end-of-document id follows each text; an empty text has no ids at all.
        """
        flat, lengths = array("I"), array("i")
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            before = len(flat)
            flat.extend(array("I", encoding.ids))
            if append_eod and len(flat) > before:
                flat.append(self.eod_id)
            lengths.append(len(flat) - before)
        tokens = np.frombuffer(flat, np.uint32).astype(token_dtype(self.vocab_size))
        return tokens, np.frombuffer(lengths, np.int32)

    def prove(self, sample_texts: Sequence[str]) -> str:
        """Choose the engine by a sample of the texts that are to be encoded, and say which it is and why."""
        return "engine: Hugging Face tokenizers"

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens spelt out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def description(self) -> dict[str, Any]:
        """What a corpus manifest records."""
        return {
            "path": str(self.path),
            "fingerprint": checksum(self.path),
            "vocab_size": self.vocab_size,
            "eod_id": self.eod_id,
        }


def _load(path: Path) -> Tokenizer:
    if not path.exists():
        raise UserError(f"{path}: tokenizer not found; make one with `kaiyuan-data tokenizer train`")
    if path.suffix != ".json":
        raise UserError(
            f"{path}: only a Hugging Face tokenizer.json can be read; "
            "convert the model with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise UserError(f"{path}: not a readable tokenizer.json ({error}); make or copy it again") from error


def _end_of_document(path: Path, vocabulary: dict[str, int], wanted: str | None) -> str:
    candidates = [wanted] if wanted else [*_configured_end(path), *_USUAL_ENDS]
    for token in candidates:
        if token in vocabulary:
            return token
    raise UserError(
        f"{path}: its vocabulary has no end-of-document token {' or '.join(candidates)}; "
        "name the right one with --eod-token"
    )


def _configured_end(path: Path) -> list[str]:
    try:
        token = json.loads(path.with_name("tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return []
    token = token.get("content") if isinstance(token, dict) else token
    return [token] if isinstance(token, str) else []
