"""What `inspect` says of a corpus, against NumPy over the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import inspect
from data_tools.corpus import CorpusWriter, Documents, manifest_path, metadata_path
from data_tools.inspect import decode_sample, describe_corpus, inspect_corpus
from data_tools.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError

TEXTS = ["def f(x): return x\n" * 5, "你好，世界。", "x = 1"]


def write(prefix: Path, lengths: list[int], scores: list[float], tokenizer: dict | None = None) -> Path:
    tokenizer = tokenizer or {"path": "", "fingerprint": "xxh3:0", "vocab_size": 10, "eod_id": 0}
    domains = [("code", "web")[i % 2] for i in range(len(lengths))]
    with CorpusWriter(prefix, tokenizer, ["score"]) as writer:
        sizes = [3 * length for length in lengths]
        tokens = np.ones(sum(lengths), np.uint16)
        writer.add(Documents(tokens, lengths, sizes, domains, domains, {"score": scores}))
    return prefix


@pytest.fixture
def prefix(tokenizer_path: Path, tmp_path: Path) -> Path:
    tokenizer = TextTokenizer(tokenizer_path)
    ids = [[*tokenizer.encode_batch([text])[0], tokenizer.eod_id] for text in TEXTS]
    with CorpusWriter(tmp_path / "c", tokenizer.description(), ["score"]) as writer:
        labels = ["code", "web", "code"]
        lengths, flat = [len(part) for part in ids], [token for part in ids for token in part]
        sizes = [len(text.encode()) for text in TEXTS]
        writer.add(Documents(np.array(flat), lengths, sizes, labels, labels, {"score": [0.0, 0.25, 0.5]}))
    return tmp_path / "c"


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**31 - 1), min_size=1, max_size=50), st.integers(1, 7))
def test_quantiles_and_the_histogram_of_lengths(lengths, rows):
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
def test_the_histogram_of_a_score(tmp_path: Path, scores):
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


def test_domains_and_counts(tmp_path: Path):
    found = inspect_corpus(write(tmp_path / "c", [1, 0, 3, 4], [0.0] * 4))
    assert (found["sequences"], found["documents"], found["tokens"]) == (3, 4, 8)
    assert found["domains"] == {
        "code": {"sequences": 2, "tokens": 4, "bytes": 12},
        "web": {"sequences": 1, "tokens": 4, "bytes": 12},
    }


def test_a_stock_corpus_has_no_manifest(prefix: Path):
    assert decode_sample(prefix, 1) == TEXTS[1] + "<|endoftext|>"
    manifest_path(prefix).unlink()
    metadata_path(prefix).unlink()
    found = inspect_corpus(prefix)
    assert (found["sequences"], found["scores"], found["manifest"]) == (3, {}, None)
    assert decode_sample(prefix, 1).split()[-1] == "0"
    with pytest.raises(UserError, match="give one of 0 to 2"):
        decode_sample(prefix, 3)


def test_another_tokenizer_is_not_used_to_decode(prefix: Path, tokenizer_path: Path, tmp_path: Path):
    manifest = json.loads(manifest_path(prefix).read_text())
    manifest["tokenizer"]["path"] = str(tmp_path / "gone.json")
    manifest_path(prefix).write_text(json.dumps(manifest))
    assert decode_sample(prefix, 0).split()[0].isdigit()
    assert decode_sample(prefix, 0, tokenizer_path).startswith("def f")
    manifest["tokenizer"].update(path=str(tokenizer_path), fingerprint="xxh3:0")
    manifest_path(prefix).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the tokenizer that made"):
        decode_sample(prefix, 0)


def test_an_empty_corpus(tmp_path: Path, command):
    done = command("inspect", write(tmp_path / "c", [0], [1.0]))
    assert done.stdout.splitlines()[-1] == "inspect: 0 sequences, 0 tokens of uint16"


def test_the_command(prefix: Path, command):
    found = json.loads(command("inspect", prefix, "--json", "--sequence", 2).stdout)
    assert found["sample"] == "x = 1<|endoftext|>"
    assert found["lengths"]["100%"] > 1
    printed = command("inspect", prefix).stdout
    assert "score: 0 to 0.5, mean 0.25" in printed
    assert "#" * 40 in printed
    assert printed.splitlines()[-1].startswith("inspect: 3 sequences")
