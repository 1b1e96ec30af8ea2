"""Text to ids and back, whatever file the tokenizer comes in: by its own library, or by a proven faster engine."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.corpora.corpus_files import token_dtype
from data_tools.tokenizers.end_of_document import END_OF_DOCUMENT, find_end, named_end
from data_tools.tokenizers.engines import (
    Compare,
    TokenizerEngine,
    Unsupported,
    build,
    choose,
    corner_difference,
    names,
    sample_difference,
)
from data_tools.tokenizers.tokenizer_formats import Ids, join_arrays, open_reference, reason_of, tokenizer_file
from megatron_kaiyuan.errors import UserError

_SHOWN = 40

__all__ = ["END_OF_DOCUMENT", "CannotEncode", "TextTokenizer"]


@contextmanager
def _without_collector() -> Iterator[None]:
    """While a vocabulary is loaded: hundreds of thousands of objects, and none of them is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CannotEncode(UserError):
    """The tokenizer's library gives up on a text; `reason` is what it says, `number` which of the texts it is."""

    def __init__(self, path: Path, number: int, text: str, reason: str):
        super().__init__(
            f"{path}: its library cannot encode a text of {len(text):,} characters that begins {text[:_SHOWN]!r} "
            f"({reason}); leave it out"
        )
        self.number, self.reason = number, reason


class TextTokenizer:
    """Text to ids and back.

    Args:
        path: a `tokenizer.json` of Hugging Face tokenizers, a sentencepiece model, a tiktoken file, or the folder
            that holds one.
        eod_token: the token that ends a document; None takes the one that the files of the folder name, which must
            agree (`end_of_document.py`), else the first usual one that the vocabulary has.
        engine: "auto" encodes with the reference library until `prove` has found a faster one with equal ids;
            "reference" stays with it; the name of an engine uses that one.

    Attributes:
        engine: the engine in use; a worker process that is given this name encodes as this process does.
        vocabulary: id of each token.
        vocab_size: the largest id + 1; a sparse vocabulary has fewer entries.
        byte_ids: ids of tokens that are a byte and no character.
        eod_id: id that ends a document. No text can contain it: spelt out, it becomes ordinary tokens.

    Raises:
        UserError: the file is missing or not a tokenizer, the end-of-document token is unknown, named in two ways or
            can come from a text, or the engine cannot take this tokenizer.
    """

    @_without_collector()
    def __init__(self, path: Path, eod_token: str | None = None, engine: str = "auto"):
        path = tokenizer_file(path)
        named = named_end(path, eod_token)
        self._reference = open_reference(path, named and named.token)
        self.path = self._reference.path
        self.vocabulary, self.vocab_size = self._reference.vocabulary, self._reference.vocab_size
        self.byte_ids = self._reference.byte_ids
        end = find_end(self._reference, named)
        self.eod_id = self.vocabulary[end]
        self._wanted = engine
        self._engines: dict[str, TokenizerEngine] = {}
        self.use("reference" if engine == "auto" else engine)
        self._check_end(end)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without any token before or after it.

        Raises:
            CannotEncode: the library gives up on a text.
        """
        flat, lengths = self._encode(texts)
        ends = np.cumsum(lengths).tolist()
        return [flat[end - length : end].tolist() for length, end in zip(lengths.tolist(), ends, strict=True)]

    def encode_flat(self, texts: Sequence[str], append_eod: bool) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Ids of all texts, one after another, in the type Megatron stores them in, and how many each text has.

        With `append_eod` the end-of-document id follows each text; an empty text has no ids at all.

        Raises:
            CannotEncode: the library gives up on a text.
        """
        flat, lengths = self._encode(texts)
        dtype = token_dtype(self.vocab_size)
        if not append_eod:
            return flat.astype(dtype), lengths
        some = lengths > 0
        lengths = lengths + some.astype(np.int32)
        tokens: NDArray[Any] = np.empty(len(flat) + np.count_nonzero(some), dtype)
        is_text: NDArray[np.bool_] = np.ones(len(tokens), np.bool_)
        is_text[np.cumsum(lengths, dtype=np.int64)[some] - 1] = False
        tokens[is_text] = flat
        tokens[~is_text] = self.eod_id
        return tokens, lengths

    def use(self, engine: str) -> None:
        """Encode with that engine from now on, proven or not.

        Raises:
            UserError: it is unknown, not installed, or cannot take this tokenizer.
        """
        try:
            self._engine = self._built(engine)
        except Unsupported as error:
            raise UserError(f"--tokenizer-engine {engine}: {error}; use --tokenizer-engine auto or reference") from None
        self.engine = engine

    @_without_collector()
    def load(self) -> None:
        """Load what `prove` and encoding may need, so that a forked process shares it."""
        self._reference.encode(["a"])
        for name in names(self._wanted):
            with suppress(Unsupported):
                self._built(name).encode(["a"])

    def prove(self, sample_texts: Sequence[str], compare: Compare | None = None) -> str:
        """Choose the engine by a sample of the texts that are to be encoded, and say which it is and why.

        With engine "auto" the fastest engine whose ids equal the reference's is in use from now on.

        Args:
            compare: does what `difference` does, in other processes.

        Raises:
            UserError: an engine was asked for by name, and it cannot be used or its ids differ.
        """

        def built_and_compared(name: str, texts: Sequence[str]) -> str | None:
            self._built(name)
            return (compare or self.difference)(name, texts)

        choice = choose(self._wanted, self._reference, sample_texts, built_and_compared)
        self.use(choice.name)
        return choice.reason

    def difference(self, engine: str, texts: Sequence[str], before: int = 0) -> str | None:
        """Where an engine's ids first differ from the reference's, in words; None when they are equal.

        Args:
            texts: a part of the sample; the first one is compared along with strings that tell engines apart.
            before: texts of the sample before these.

        Raises:
            Unsupported: the engine is not installed, or cannot take this tokenizer.
        """
        found = self._built(engine)
        corners = None if before else corner_difference(found, self._reference)
        return corners or sample_difference(found, self._reference, texts, before)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens spelt out."""
        return self._reference.decode(ids)

    def description(self) -> dict[str, Any]:
        """What a corpus manifest records."""
        return {
            "path": os.path.abspath(self.path),
            "fingerprint": self._reference.fingerprint(),
            "vocab_size": self.vocab_size,
            "eod_id": self.eod_id,
        }

    def _encode(self, texts: Sequence[str]) -> Ids:
        try:
            return self._engine.encode(texts)
        except BaseException as error:
            reason_of(error)
        # A library does not say which text it was; and where a faster engine gives up, the reference may not.
        return join_arrays([self._encode_alone(number, text) for number, text in enumerate(texts)])

    def _encode_alone(self, number: int, text: str) -> NDArray[np.uint32]:
        try:
            return self._engine.encode([text])[0]
        except BaseException as error:
            reason_of(error)
        try:
            return self._reference.encode([text])[0]
        except BaseException as error:
            raise CannotEncode(self.path, number, text, reason_of(error)) from error

    def _built(self, name: str) -> TokenizerEngine:
        if name not in self._engines:
            self._engines[name] = build(name, self._reference)
        return self._engines[name]

    def _check_end(self, token: str) -> None:
        """Refuse an end that a text could hold: such a text would be cut where its author wrote the token."""
        if self.eod_id in self._engine.encode([token])[0]:
            raise UserError(
                f"{self.path}: a text that spells out {token!r} would end the document there; name a token with "
                "--eod-token that the file calls special and that is not the one for unknown words"
            )
