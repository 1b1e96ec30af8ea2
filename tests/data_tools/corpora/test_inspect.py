"""What `inspect` says of a corpus, against NumPy over the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.corpora import inspect
from data_tools.corpora.corpus import CorpusWriter, Documents, manifest_path
from data_tools.corpora.inspect import describe_corpus, inspect_corpus
from megatron_kaiyuan.data.metadata import metadata_path
from tests.helpers.processes.command import Command


def write(prefix: Path, lengths: list[int], scores: list[float], tokenizer: dict | None = None) -> Path:
    tokenizer = tokenizer or {"path": "", "fingerprint": "xxh3:0", "vocab_size": 10, "eod_id": 0}
    domains = [("code", "web")[i % 2] for i in range(len(lengths))]
    with CorpusWriter(prefix, tokenizer, ["score"]) as writer:
        sizes = [3 * length for length in lengths]
        tokens = np.ones(sum(lengths), np.uint16)
        writer.add(Documents(tokens, lengths, sizes, domains, domains, {"score": scores}))
    return prefix


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**31 - 1), min_size=1, max_size=50), st.integers(1, 7))
def test_quantiles_and_the_histogram_of_lengths(lengths, rows: int) -> None:
    array = np.array(lengths, np.int32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inspect, "_ROWS_AT_ONCE", rows)
        patched.setattr(inspect, "_COMMON_LENGTH", 16)
        values, counts = inspect._length_counts(array)
    expected = np.quantile(array, inspect._QUANTILES, method="inverted_cdf")
    assert list(inspect._quantiles(values, counts).values()) == expected.tolist()
    histogram = inspect._length_histogram(values, counts)
    assert histogram == [[low, high, int(((array >= low) & (array < high)).sum())] for low, high, _ in histogram]
    assert sum(count for *_, count in histogram) == len(lengths)


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(0).normal(size=500).tolist(),
        [1.0] * 9,
        [0.1, 0.1 + 1e-17, np.nextafter(0.1, 1)],
        [-1e308, 0.0, 1e308],
        [float("nan"), 2.0, float("inf"), 3.0],
        [float("nan")] * 2,
    ],
    ids=["normal", "one value", "neighbours", "huge", "partly missing", "all missing"],
)
def test_the_histogram_of_a_score(tmp_path: Path, scores) -> None:
    found = inspect_corpus(write(tmp_path / "c", [2] * len(scores), scores))["scores"]["score"]
    finite = np.array([score for score in scores if np.isfinite(score)])
    assert found["missing"] == len(scores) - len(finite)
    assert sum(count for *_, count in found["histogram"]) == len(finite)
    if len(finite):
        assert (found["least"], found["greatest"]) == (finite.min(), finite.max())
        assert found["mean"] == pytest.approx(finite.mean())
        edges = [edge for edge, *_ in found["histogram"]]
        assert edges == sorted(edges)
    json.dumps(found, allow_nan=False)
    assert list(describe_corpus(inspect_corpus(tmp_path / "c")))


def test_domains_and_counts(tmp_path: Path) -> None:
    found = inspect_corpus(write(tmp_path / "c", [1, 0, 3, 4], [0.0] * 4))
    assert (found["sequences"], found["documents"], found["tokens"]) == (3, 4, 8)
    assert found["domains"] == {
        "code": {"sequences": 2, "tokens": 4, "bytes": 12},
        "web": {"sequences": 1, "tokens": 4, "bytes": 12},
    }


def test_a_stock_corpus_has_no_manifest(tmp_path: Path) -> None:
    prefix = write(tmp_path / "c", [1, 0, 3, 4], [0.0] * 4)
    manifest_path(prefix).unlink()
    metadata_path(prefix).unlink()
    found = inspect_corpus(prefix)
    assert (found["sequences"], found["scores"], found["manifest"]) == (3, {}, None)


def test_an_empty_corpus(tmp_path: Path, command: Command) -> None:
    done = command("inspect", write(tmp_path / "c", [0], [1.0]))
    assert done.stdout.splitlines()[-1] == "inspect: 0 sequences, 0 tokens of uint16"
