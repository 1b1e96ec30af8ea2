"""Train a linear classifier with fastText's library: documents that are wanted against documents that are not."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError, excerpt, require
from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.logs import shows_bars
from megatron_kaiyuan.progress import counted

POSITIVE, NEGATIVE = "__label__hq", "__label__lq"
_LONGEST_LINE = 1 << 20  # characters
_WORDS_PER_BUCKET, _MOST_BUCKETS = 4, 2_000_000
_LARGEST_INT = (1 << 31) - 1
_HIGHEST_RATE = 100.0


def train_linear(
    positives: Iterable[str],
    negatives: Iterable[str],
    output: Path,
    *,
    word_ngrams: int = 2,
    dim: int = 64,
    epochs: int = 5,
    learning_rate: float = 0.5,
    buckets: int = 0,
    seed: int = 1234,
) -> dict[str, Any]:
    """Train on one thread, so that the same input gives the same bytes, and write `output` whole or not at all.

    Args:
        positives: documents of label `__label__hq`, whose probability the scorer `linear` gives.
        negatives: documents of label `__label__lq`.
        output: a `.bin` file, which may be replaced.
        epochs: passes over all documents, which are shuffled once, by the seed.
        buckets: rows for word n-grams; the file has about 4 * dim * (words + buckets) bytes. 0: one for four words of
            the documents, at most 2,000,000, so that few documents make a small file.

    Returns:
        {"positives", "negatives": documents, "words": in the dictionary, "buckets"}.

    Raises:
        UserError: a setting is wrong, a class has no document with text, the package is missing, or its library
            refuses the settings.
    """
    check_settings(
        word_ngrams=word_ngrams, dim=dim, epochs=epochs, learning_rate=learning_rate, buckets=buckets, seed=seed
    )
    library = require("fasttext", extra="scores", purpose="training a linear classifier")
    if not hasattr(library, "train_supervised"):
        raise UserError("the installed package 'fasttext' cannot train: pip install fasttext-community in its place")
    with tempfile.TemporaryDirectory(prefix="kaiyuan-linear-") as folder:
        lines = Path(folder) / "lines.txt"
        counts, words = _write_lines(lines, positives, negatives, seed)
        buckets = buckets or min(max(words // _WORDS_PER_BUCKET, 1), _MOST_BUCKETS)
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
                    verbose=2 if shows_bars() else 0,
                )
                model.save_model(str(temporary))
            except (ValueError, RuntimeError, MemoryError) as error:
                raise UserError(
                    f"fastText cannot train this classifier ({excerpt(error)}); try a lower --learning-rate, or a "
                    "smaller --dim or --buckets"
                ) from error
    return {**counts, "words": len(model.words), "buckets": buckets}


def check_settings(*, word_ngrams: int, dim: int, epochs: int, learning_rate: float, buckets: int, seed: int) -> None:
    """Refuse settings that the library would refuse late, or not at all, before anything is read.

    Raises:
        UserError: naming the option of the command.
    """
    for option, value, least, most in (
        ("--word-ngrams", word_ngrams, 1, 100),
        ("--dim", dim, 1, 10_000),
        ("--epochs", epochs, 1, 1_000_000),
        ("--buckets", buckets, 0, _LARGEST_INT),
        ("--seed", seed, 0, _LARGEST_INT),
    ):
        if not least <= value <= most:
            raise UserError(f"{option} {value}: must be from {least} to {most:,}")
    if not (0 < learning_rate <= _HIGHEST_RATE):
        raise UserError(f"--learning-rate {learning_rate}: must be above 0 and at most {_HIGHEST_RATE:g}")


def _write_lines(
    path: Path, positives: Iterable[str], negatives: Iterable[str], seed: int
) -> tuple[dict[str, int], int]:
    """A line a document, `LABEL words`, in an order drawn by the seed; documents of each class, and words in all."""
    total = 0
    places: list[tuple[int, int]] = []
    counts = {"positives": 0, "negatives": 0}
    unshuffled = path.with_suffix(".unshuffled")
    with open(unshuffled, "wb") as file:
        for kind, label, texts in (("positives", POSITIVE, positives), ("negatives", NEGATIVE, negatives)):
            for line in _lines(label, texts):
                places.append((file.tell(), len(line)))
                file.write(line)
                counts[kind] += 1
                total += line.count(b" ")
    for kind, count in counts.items():
        if not count:
            raise UserError(f"training a linear classifier: no {kind} with text; name files that hold some")
    random.Random(seed).shuffle(places)
    with open(unshuffled, "rb") as source, open(path, "wb") as target:
        for start, size in places:
            source.seek(start)
            target.write(source.read(size))
    return counts, total


def _lines(label: str, texts: Iterable[str]) -> Iterator[bytes]:
    """Words as the library parts them, at ASCII white space, without those that mean something to it."""
    for text in counted(texts, "scorer train: read"):
        words = text[:_LONGEST_LINE].replace("\0", " ").encode().split()
        if words := [word for word in words if not word.startswith(b"__label__") and word != b"</s>"]:
            yield label.encode() + b" " + b" ".join(words) + b"\n"
