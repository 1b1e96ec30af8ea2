"""What the extensions make of fixed input: one line for each product, its SHA-256.

Two processors, compilers or sets of flags make the same products when two outputs are equal (csrc/aarch64.sh compares
them). From the project's folder:

    python -m tests.csrc.products MODEL

MODEL is a fastText model; if there is no such file, it is trained and written there.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_tools import _curriculum, _dedup, _index, _scores
from data_tools.dedup.signatures import Recipe, kaiyuan_preset, text_memory
from data_tools.scores.kinds.rules import _character_classes
from data_tools.scores.parse import parse_scorer
from tests.helpers.files.built_order import build
from tests.helpers.files.real_texts import ODD, batch_of
from tests.helpers.references.algorithm1 import Data

ROOT = Path(__file__).parents[2]
SEED = 20
LENGTHS = (50_000, 20_000, 3)


def texts() -> list[str]:
    """Odd ones, sources in C++, and random code points of every script, with near-duplicates of each."""
    random = np.random.default_rng(SEED)
    found = [*ODD, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "csrc").rglob("*.cpp")))]
    for _ in range(400):
        last = random.choice([0x7F, 0x24F, 0x2FFF, 0x9FFF, 0xFFFF, 0x10FFFF])
        codes = random.integers(1, last, random.integers(1, 600))
        codes[random.random(len(codes)) < 0.2] = 0x20
        found.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000))
    return found + [text[: len(text) * 9 // 10] + " and more" for text in found]


def orders() -> Iterator[tuple[str, object]]:
    random = np.random.default_rng(SEED)
    datasets = []
    for number, rows in enumerate(LENGTHS):
        scores = random.random(rows) * 10.0 ** random.integers(-300, 300, rows)
        scores[random.random(rows) < 0.1] = np.nan
        datasets.append(
            Data(
                random.integers(1, 5000, rows).tolist(),
                scores.tolist(),
                (number, number + 7),
                ranks=(0.1, 0.9),
                probability=0.37,
                extra=0.21 if number else None,
            )
        )
    for settings in ({}, {"perturb": 0.3}, {"by_tokens": True, "buckets": 13}, {"window_rows": 500}):
        yield f"order {settings}", build(datasets, piece=999, shuffle=False, **settings)
    yield "order shuffled", build(datasets, piece=999, shuffle=True, threads=2)
    packer = _curriculum.Packer(4096, 64)
    lengths = random.integers(1, 9000, 20_000).astype(np.int32)
    yield (
        "packs",
        [array.tolist() for array in (*packer.add(np.arange(20_000, dtype=np.uint64), lengths), *packer.finish())],
    )


def indexes() -> Iterator[tuple[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index.idx")
        writer = _index.IndexWriter(str(path).encode(), 8)
        writer.add(np.random.default_rng(SEED).integers(0, 3000, 100_000).astype(np.int32))
        writer.finish(2)
        yield "index", path.read_bytes()


def signatures(documents: list[str]) -> Iterator[tuple[str, object]]:
    memory = text_memory(batch_of(documents)["text"])
    for name, recipe in (
        ("words", Recipe()),
        ("characters", Recipe(shingles="characters", numbers="keep")),
        ("kaiyuan", kaiyuan_preset()),
    ):
        signer = recipe.signer()
        numbers, counts, digests = signer.sign(*memory)
        yield f"signatures {name}", numbers
        yield f"shingles counted {name}", counts
        yield f"digests {name}", digests
        yield f"bands {name}", _dedup.band_keys(numbers, recipe.bands, recipe.rows)
        offsets, hashes = signer.shingle_sets(*memory)
        yield f"shingles {name}", hashes
        half = len(documents) // 2
        pairs = np.stack([np.arange(half), np.arange(half) + half], axis=1).astype(np.int64)
        yield f"Jaccard {name}", _dedup.jaccard(pairs, offsets, hashes)


def scores(documents: list[str], model: Path) -> Iterator[tuple[str, object]]:
    batch = batch_of(documents)
    memory = text_memory(batch["text"])
    yield "rules", _scores.rule_measures(_character_classes(), *memory)
    yield "linear", _scores.LinearModel(str(model).encode()).probabilities(*memory)
    yield "rules, as scorer", {name: column.to_pylist() for name, column in parse_scorer("rules").score(batch).items()}


def train(path: Path, documents: list[str]) -> None:
    """Subwords and bigrams; its softmax of three labels has sums whose rounding shows."""
    import fasttext

    lines = Path(f"{path}.txt")
    rows = [f"__label__{at % 3} {' '.join(text.split()[:300])}\n" for at, text in enumerate(documents)]
    lines.write_text("".join(rows), encoding="utf-8")
    model = fasttext.train_supervised(str(lines), wordNgrams=2, minn=2, maxn=4, dim=16, bucket=5000, verbose=0)
    model.save_model(str(path))


def digest(product: object) -> str:
    if isinstance(product, np.ndarray):
        product = product.dtype.str.encode() + np.ascontiguousarray(product).tobytes()
    return hashlib.sha256(product if isinstance(product, bytes) else repr(product).encode()).hexdigest()


def main(model: Path) -> None:
    documents = texts()
    if not model.exists():
        train(model, documents)
    for products in (orders(), indexes(), signatures(documents), scores(documents, model)):
        for name, product in products:
            print(digest(product), name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
