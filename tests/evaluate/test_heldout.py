from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate import heldout
from megatron_kaiyuan.evaluate.heldout import (
    held_out_loss,
    open_corpora,
    tokens_to_predict,
    unigram_entropy,
)
from megatron_kaiyuan.evaluate.predictor import predictor_of_transformers
from megatron_kaiyuan.export.loading import load_network
from tests.helpers.training.tiny_model import VOCABULARY, random_documents, write_corpus, write_model


def by_hand(folder: Path, documents: list[list[int]], seq_length: int) -> tuple[list[float], list[int]]:
    """Nats and ids of the predicted tokens, one forward pass a window, softmax by hand in float64."""
    network = load_network(folder)
    stream = [token for document in documents for token in document]
    nats, predicted = [], []
    for start in range(0, len(stream) - 1, seq_length):
        window = stream[start : start + seq_length + 1]
        with torch.no_grad():
            logits = network(torch.tensor([window[:-1]])).logits[0].double()
        for row, label in zip(logits, window[1:], strict=True):
            nats.append((row.exp().sum().log() - row[label]).item())
            predicted.append(label)
    return nats, predicted


@pytest.mark.parametrize("seq_length", [16, 33, 250])
def test_nats_and_entropy_equal_a_calculation_by_hand(tmp_path: Path, seq_length: int) -> None:
    folder = write_model(tmp_path / "model")
    texts = {"code": random_documents(12, seed=1), "english": random_documents(5, seed=2)}
    prefixes = [write_corpus(tmp_path / f"{name}_text_document", documents) for name, documents in texts.items()]
    # Three windows a batch, so that batches are cut too.
    predictor = replace(predictor_of_transformers(load_network(folder)), logits_per_batch=3 * seq_length * VOCABULARY)
    result = held_out_loss(predictor, open_corpora(prefixes), seq_length, token_limit=None)

    all_nats: list[float] = []
    all_predicted: list[int] = []
    positions: list[int] = []
    for name, documents in texts.items():
        nats, predicted = by_hand(folder, documents, seq_length)
        domain = result["domains"][name]
        assert domain["tokens"] == len(nats) == sum(map(len, documents)) - 1
        assert domain["nats_per_token"] == pytest.approx(np.mean(nats), abs=1e-5)
        assert domain["unigram_entropy"] == pytest.approx(scipy.stats.entropy(np.bincount(predicted)))
        # Stock corpora do not count the bytes of their text.
        assert domain["bits_per_byte"] is None
        all_nats += nats
        all_predicted += predicted
        positions += [place % seq_length for place in range(len(nats))]
    assert result["nats_per_token"] == pytest.approx(np.mean(all_nats), abs=1e-5)
    assert result["unigram_entropy"] == pytest.approx(scipy.stats.entropy(np.bincount(all_predicted)))
    assert result["by_position"][-1]["to"] == seq_length and len(result["by_position"]) > 10
    for one in result["by_position"]:
        inside = [nats for nats, place in zip(all_nats, positions, strict=True) if one["from"] <= place < one["to"]]
        assert one["tokens"] == len(inside) and one["nats_per_token"] == pytest.approx(np.mean(inside), abs=1e-5)


def test_bits_per_byte_are_of_all_bytes(tmp_path: Path) -> None:
    predictor = predictor_of_transformers(load_network(write_model(tmp_path / "model")))
    sizes = {"code": 12, "english": 5}
    prefixes = [write_corpus(tmp_path / name, random_documents(count, seed=count)) for name, count in sizes.items()]
    for prefix, count in zip(prefixes, sizes.values(), strict=True):
        pq.write_table(
            pa.table({"bytes": pa.array([100 + 7 * row for row in range(count)], pa.int32())}), f"{prefix}.meta.parquet"
        )
    corpora = open_corpora(prefixes)
    result = held_out_loss(predictor, corpora, 32, token_limit=None)
    # Of 17 documents laid end to end: nats of each corpus, all of its tokens counted.
    nats = sum(result["domains"][name]["nats_per_token"] * corpora[name].num_tokens for name in sizes)
    size = sum(100 + 7 * row for count in sizes.values() for row in range(count))
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    (tmp_path / "english.meta.parquet").unlink()
    result = held_out_loss(predictor, open_corpora(prefixes), 32, token_limit=None)
    assert result["bits_per_byte"] is None and result["domains"]["code"]["bits_per_byte"] > 0


@pytest.mark.parametrize("limit", [None, 150])
def test_what_is_predicted_is_counted_as_it_is_done(tmp_path: Path, limit: int | None) -> None:
    predictor = predictor_of_transformers(load_network(write_model(tmp_path / "model")))
    corpora = open_corpora([write_corpus(tmp_path / name, random_documents(9, seed=1)) for name in ("a", "b")])
    tokens: list[int] = []
    sequences: list[int] = []
    result = held_out_loss(predictor.counted(sequences.append), corpora, 16, limit, tokens.append)
    assert sum(tokens) == result["tokens"] == tokens_to_predict(corpora, 16, limit)
    # Windows of 16 tokens at most, each read once.
    assert sum(tokens) / 16 <= sum(sequences) <= sum(tokens) / 16 + 2


def test_the_limit_is_shared_evenly_and_kept(tmp_path: Path) -> None:
    predictor = predictor_of_transformers(load_network(write_model(tmp_path / "model")))
    large = write_corpus(tmp_path / "large", random_documents(60, seed=3))
    small = write_corpus(tmp_path / "small", [[5, 6, 7, 0]])
    result = held_out_loss(predictor, open_corpora([large, small]), seq_length=32, token_limit=600)
    assert result["domains"]["small"]["tokens"] == 3
    assert 300 - 32 < result["domains"]["large"]["tokens"] <= 300
    assert result["tokens"] == sum(domain["tokens"] for domain in result["domains"].values())


@given(st.integers(0, 3000), st.integers(1, 300), st.none() | st.integers(1, 3000))
def test_windows_never_overlap_and_keep_the_limit(to_predict: int, seq_length: int, limit: int | None) -> None:
    starts, sizes = heldout._windows(to_predict, seq_length, limit)
    ends = starts + sizes
    assert all(sizes > 0) and all(sizes <= seq_length)
    assert all(starts[1:] >= ends[:-1]) and (not len(ends) or ends[-1] <= to_predict)
    most = to_predict if limit is None else min(limit, to_predict)
    assert sizes.sum() <= most
    if most == to_predict:
        assert sizes.sum() == to_predict
    else:
        assert sizes.sum() > most - seq_length


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=50).filter(any))
def test_unigram_entropy_is_scipys(counts: list[int]) -> None:
    assert unigram_entropy(np.array(counts)) == pytest.approx(scipy.stats.entropy(counts), abs=1e-12)


def test_bad_corpora_are_named(tmp_path: Path) -> None:
    predictor = predictor_of_transformers(load_network(write_model(tmp_path / "model")))
    foreign = write_corpus(tmp_path / "foreign", [[1, 2, VOCABULARY + 7, 0]])
    with pytest.raises(UserError, match=f"foreign: token id {VOCABULARY + 7}"):
        held_out_loss(predictor, open_corpora([foreign]), seq_length=8)
    single = write_corpus(tmp_path / "single", [[0]])
    with pytest.raises(UserError, match="single: fewer than two"):
        held_out_loss(predictor, open_corpora([single]), seq_length=8)
    with pytest.raises(UserError, match="called 'foreign' too"):
        open_corpora([foreign, write_corpus(tmp_path / "other" / "foreign_text_document", [[1, 0]])])
    with pytest.raises(UserError, match="at least one"):
        open_corpora([])
