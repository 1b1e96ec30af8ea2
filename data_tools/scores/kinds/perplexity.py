"""Perplexity under an n-gram language model of KenLM, as CCNet cuts web text (Wenzek et al. 2020, section 3.3)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from data_tools.scores.scorer import MEASURE, identity_of, measures, texts_of
from megatron_kaiyuan.errors import UserError, excerpt, require


@dataclass(frozen=True)
class PerplexityScorer:
    """10 ** -(sum of log10 p / tokens) over the document's lines.

    Each line that is not blank is a sentence from <s> to </s>. Its tokens are what ASCII white space separates, or the
    sentencepiece pieces, and </s>; an unknown one has the model's probability of <unk>. The text is taken as it is: a
    model of lower-cased or otherwise normalised text wants such input.

    Missing: a null text, and one without a token.

    Attributes:
        path: `.arpa`, or KenLM's binary form, which loads faster.
        pieces: sentencepiece model that split the language model's text; None: words.
    """

    version: ClassVar[int] = 1
    path: Path
    pieces: Path | None = None
    name: str = "perplexity"

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return {self.name: MEASURE}

    def identity(self) -> dict[str, Any]:
        return identity_of(self, {"path": self.path} | ({"pieces": self.pieces} if self.pieces else {}))

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        log10_of = _load_model(self.path).score
        split = _load_pieces(self.pieces) if self.pieces else _words
        return {self.name: measures([_perplexity(text, split, log10_of) for text in texts_of(batch).to_pylist()])}


def _perplexity(
    text: str | None, split: Callable[[str], list[bytes]], log10_of: Callable[[bytes], float]
) -> float | None:
    total, tokens = 0.0, 0
    for line in (text or "").split("\n"):
        if words := split(line):
            total += log10_of(b" ".join(words))
            tokens += len(words) + 1
    # No model gives less than 1e-300 a token: only a text of infinite perplexity could overflow.
    return 10.0 ** min(-total / tokens, 300.0) if tokens else None


def _words(line: str) -> list[bytes]:
    return line.replace("\0", " ").encode().split()


@functools.lru_cache(maxsize=2)
def _load_model(path: Path) -> Any:
    kenlm = require("kenlm", extra="scores", purpose="n-gram perplexity")
    if not path.is_file():
        raise UserError(f"{path}: language model not found; name an .arpa or a binary file of KenLM")
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(str(path), config)
    # A message that quotes bytes of the file may not decode.
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        reason = excerpt(str(error).partition(" threw ")[2] or error)
        raise UserError(f"{path}: KenLM cannot read this model ({reason}); name an .arpa or its binary form") from error


@functools.lru_cache(maxsize=2)
def _load_pieces(path: Path) -> Callable[[str], list[bytes]]:
    library = require("sentencepiece", extra="tokenizers", purpose="perplexity of sentencepiece pieces")
    processor = library.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not a sentencepiece model ({excerpt(error)}); name its .model file") from error

    def split(line: str) -> list[bytes]:
        return [piece.encode() for piece in processor.EncodeAsPieces(line)]

    return split


SCORER = PerplexityScorer
