"""Train a linear classifier with fastText's library: documents that are wanted against documents that are not."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.files import atomic_path

POSITIVE, NEGATIVE = "__label__hq", "__label__lq"
_LONGEST_LINE = 1 << 20  # characters


def train_linear(
    positives: Iterable[str],
    negatives: Iterable[str],
    output: Path,
    *,
    word_ngrams: int = 2,
    dim: int = 64,
    epochs: int = 5,
    learning_rate: float = 0.5,
    buckets: int = 2_000_000,
    seed: int = 1234,
) -> dict[str, Any]:
    """Train on one thread, so that the same input gives the same bytes, and write `output` whole or not at all.

    Args:
        positives: documents of label `__label__hq`, whose probability the scorer `linear` gives.
        negatives: documents of label `__label__lq`.
        output: a `.bin` file, which may be replaced.
        epochs: passes over all documents, which are shuffled once, by the seed.
        buckets: rows for word n-grams; the file has about 4 * dim * (words + buckets) bytes.

    Returns:
        {"positives", "negatives": documents, "words": in the dictionary}.

    Raises:
        UserError: a class has no document with text, the package is missing, or its library refuses the settings.
    """
    library = require("fasttext", extra="scores", purpose="training a linear classifier")
    if not hasattr(library, "train_supervised"):
        raise UserError("the installed package 'fasttext' cannot train: pip install fasttext-community in its place")
    with tempfile.TemporaryDirectory(prefix="kaiyuan-linear-") as folder:
        lines = Path(folder) / "lines.txt"
        counts = _write_lines(lines, positives, negatives, seed)
        with atomic_path(output) as temporary:
            try:
                model = library.train_supervised(
                    input=str(lines),
                    wordNgrams=word_ngrams,
                    dim=dim,
                    epoch=epochs,
                    lr=learning_rate,
                    bucket=buckets,
                    seed=seed,
                    thread=1,
                    verbose=0,
                )
                model.save_model(str(temporary))
            except (ValueError, RuntimeError, MemoryError) as error:
                raise UserError(f"{output}: fastText cannot train this classifier ({error})") from error
    return {**counts, "words": len(model.words)}


def _write_lines(path: Path, positives: Iterable[str], negatives: Iterable[str], seed: int) -> dict[str, int]:
    """A line a document, `LABEL words`, in an order drawn by the seed."""
    places: list[tuple[int, int]] = []
    counts = {"positives": 0, "negatives": 0}
    unshuffled = path.with_suffix(".unshuffled")
    with open(unshuffled, "wb") as file:
        for kind, label, texts in (("positives", POSITIVE, positives), ("negatives", NEGATIVE, negatives)):
            for line in _lines(label, texts):
                places.append((file.tell(), len(line)))
                file.write(line)
                counts[kind] += 1
    for kind, count in counts.items():
        if not count:
            raise UserError(f"training a linear classifier: no {kind} with text; name files that hold some")
    random.Random(seed).shuffle(places)
    with open(unshuffled, "rb") as source, open(path, "wb") as target:
        for start, size in places:
            source.seek(start)
            target.write(source.read(size))
    return counts


def _lines(label: str, texts: Iterable[str]) -> Iterator[bytes]:
    """Words as the library parts them, at ASCII white space, without those that mean something to it."""
    for text in texts:
        words = text[:_LONGEST_LINE].replace("\0", " ").encode().split()
        if words := [word for word in words if not word.startswith(b"__label__") and word != b"</s>"]:
            yield label.encode() + b" " + b" ".join(words) + b"\n"
