"""How named peers make MinHash signatures, as their documentation shows it: 128 permutations, word 5-grams."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import MagicMock

PERMUTATIONS = 128


class Peer(NamedTuple):
    """`sign` takes texts; `shingles` is whether it gets word 5-grams instead, made before the clock starts."""

    name: str
    sign: Callable[[list[Any]], object]
    takes_shingles: bool = False


def python_shingles(text: str) -> list[str]:
    """Word 5-grams by the usual few lines of Python: lower case, split at what is not a word."""
    words = re.split(r"\W+", text.lower())
    return [" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))]


def installed_peers() -> list[Peer]:
    """Those of datasketch, rensa and gaoya that are installed."""
    found: list[Peer] = []
    for name, peers in (("datasketch", _datasketch), ("rensa", _rensa), ("gaoya", _gaoya)):
        try:
            library = importlib.import_module(name)
        except ImportError:
            print(f"{name}: not installed")
            continue
        found += [Peer(f"{name} {version(name)}, {what}", sign, ready) for what, sign, ready in peers(library)]
    return found


def _datasketch(library: ModuleType) -> list[tuple[str, Callable[[list[Any]], object], bool]]:
    def sign(shingles: list[str]) -> object:
        minhash = library.MinHash(num_perm=PERMUTATIONS)
        minhash.update_batch([shingle.encode() for shingle in shingles])
        return minhash.hashvalues

    return [
        ("shingles in Python", lambda texts: [sign(python_shingles(text)) for text in texts], False),
        ("shingles given", lambda documents: [sign(shingles) for shingles in documents], True),
    ]


def _rensa(library: ModuleType) -> list[tuple[str, Callable[[list[Any]], object], bool]]:
    def sign(shingles: list[str]) -> object:
        minhash = library.RMinHash(num_perm=PERMUTATIONS, seed=42)
        minhash.update(shingles)
        return minhash.digest()

    return [
        ("shingles in Python", lambda texts: [sign(python_shingles(text)) for text in texts], False),
        ("shingles given", lambda documents: [sign(shingles) for shingles in documents], True),
    ]


def _gaoya(library: ModuleType) -> list[tuple[str, Callable[[list[Any]], object], bool]]:
    def insert(texts: list[str]) -> object:
        minhash = importlib.import_module("gaoya.minhash")
        index = minhash.MinHashStringIndex(32, 0.7, 21, 6, None, "word", True, (5, 5), "vec")
        for number, text in enumerate(texts):
            index.insert_document(number, text)
        return index

    return [("insert of texts", insert, False)]


def released_minhash(checkout: Path) -> tuple[Any, Any, Any]:
    """Kaiyuan-Spark's own MinHash node, its generate_hash_values and its text_normalization.

    The node has the arguments of its example, 128 permutations and threshold 0.7. pyspark and jieba, which the module
    imports, are stood in for, because these functions do not use them; it needs scipy and regex.
    """
    for name in ("pyspark", "pyspark.sql", "pyspark.sql.types", "jieba", "datafiner.deduplication.wcc"):
        sys.modules[name] = MagicMock()
    base, register, package = (ModuleType(f"datafiner{name}") for name in (".base", ".register", ""))
    base.__dict__["PipelineNode"] = type("PipelineNode", (), {"__init__": lambda self, spark, children: None})
    register.__dict__["register"] = lambda name: lambda node: node
    package.__path__ = [str(checkout / "datafiner")]
    sys.modules.update({"datafiner.base": base, "datafiner.register": register, "datafiner": package})
    minhash = importlib.import_module("datafiner.deduplication.minhash")
    normalisation = importlib.import_module("datafiner.deduplication.text_normalization")
    node = minhash.MinHash(spark=None, num_permutations=PERMUTATIONS, threshold=0.7, num_parallel=1)
    return node, minhash.generate_hash_values, normalisation.text_normalization


def released_bands(checkout: Path) -> Callable[[str], list[tuple[int, bytes, int]]]:
    """What Kaiyuan-Spark's functions make of a text: (band, its bytes, 0) for each band, none for a short text."""
    node, generate_hash_values, text_normalization = released_minhash(checkout)

    def bands(text: str) -> list[tuple[int, bytes, int]]:
        return generate_hash_values(
            uid=0,
            content=text_normalization(text),
            ngram_size=node.ngram_size,
            min_length=node.min_length,
            perm_a=node.perm_a,
            perm_b=node.perm_b,
            num_bands=node.num_bands,
            num_rows_per_band=node.num_rows_per_band,
        )

    return bands


def released_peer(checkout: Path) -> Peer:
    bands = released_bands(checkout)
    return Peer("Kaiyuan-Spark's functions", lambda texts: [bands(text) for text in texts])
