"""Small real corpora for tests, written as `kaiyuan-data preprocess` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_tools.corpora.corpus import CorpusWriter, Documents


def write_corpus(
    prefix: Path,
    documents: Sequence[Sequence[int]],
    scores: Mapping[str, Sequence[float]] | None = None,
    vocab: int = 1000,
) -> Path:
    """One sequence for each of `documents`; an empty one would have no sequence."""
    scores = scores or {}
    tokenizer = {"path": "tokenizer.json", "fingerprint": "xxh3:0", "vocab_size": vocab, "eod_id": 0}
    count = len(documents)
    with CorpusWriter(prefix, tokenizer, list(scores)) as writer:
        tokens = np.array([token for document in documents for token in document], np.int64)
        lengths = [len(document) for document in documents]
        writer.add(Documents(tokens, lengths, [1] * count, ["test"] * count, ["file"] * count, scores))
    return prefix


def numbered_corpus(prefix: Path, lengths: Sequence[int], first: int, **more) -> Path:
    """Documents whose tokens count upwards from `first`, modulo the vocabulary, so that each place is recognisable."""
    vocab = more.get("vocab", 1000)
    ends = np.cumsum(lengths)
    documents = [
        ((first + np.arange(end - length, end)) % vocab).tolist() for length, end in zip(lengths, ends, strict=True)
    ]
    return write_corpus(prefix, documents, **more)
