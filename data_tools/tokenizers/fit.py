"""How well a tokenizer fits a text: bytes a token, and how often characters fall back to bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.reading.texts import texts
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.progress import counted


@dataclass
class Fit:
    """Counts over one domain.

    Attributes:
        byte_tokens: tokens that are one byte and no character.
    """

    domain: str
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    byte_tokens: int = 0

    def as_dict(self) -> dict[str, float]:
        return {
            "documents": self.documents,
            "bytes": self.text_bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.text_bytes / max(self.tokens, 1),
            "byte_token_share": self.byte_tokens / max(self.tokens, 1),
        }

    def __str__(self) -> str:
        found = self.as_dict()
        return (
            f"{self.domain}: {self.documents:,} documents, {self.tokens:,} tokens, "
            f"{found['bytes_per_token']:.2f} bytes/token, {found['byte_token_share']:.2%} byte tokens"
        )

    def add(self, text_bytes: int, tokens: int, byte_tokens: int) -> None:
        self.documents += 1
        self.text_bytes += text_bytes
        self.tokens += tokens
        self.byte_tokens += byte_tokens


def measure(
    tokenizer_path: Path, inputs: Sequence[str | Path], key: str = "text", eod_token: str | None = None
) -> list[Fit]:
    """Fits by domain, in the order in which the domains come, then over all.

    Raises:
        UserError: the tokenizer or an input is wrong, or holds no text.
    """
    tokenizer = TextTokenizer(tokenizer_path, eod_token)
    fits: dict[str, Fit] = {}
    total = Fit("all")
    for text, domain in counted(texts(inputs, key), "tokenizer inspect"):
        ids = tokenizer.encode_batch([text])[0]
        counts = len(text.encode()), len(ids), int(np.isin(ids, tokenizer.byte_ids).sum())
        domain = domain or "unknown"
        fits.setdefault(domain, Fit(domain)).add(*counts)
        total.add(*counts)
    if not total.documents:
        raise UserError(f"{', '.join(map(str, inputs))}: no text to measure; name files that hold some")
    return [*fits.values(), total]
