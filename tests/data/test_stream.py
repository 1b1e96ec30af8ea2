"""The stream against a plain concatenation, its purity, and its errors."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.small_corpora import numbered_corpus, write_corpus

VOCAB = 1000


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Three phases over two corpora; the second phase is one document of one token."""
    root = tmp_path_factory.mktemp("stream")
    generator = np.random.default_rng(4)
    corpora = {
        "code": numbered_corpus(root / "code", generator.integers(1, 30, 900).tolist(), 0),
        "wiki": numbered_corpus(root / "wiki", generator.integers(1, 200, 400).tolist(), 700),
        "one": write_corpus(root / "one", [[999]]),
    }
    datasets = {
        "first": [{"corpus": "code"}, {"corpus": "wiki", "keep": "random 0.5"}],
        "second": [{"corpus": "one"}],
        "third": [{"corpus": "wiki", "repeat": 2.5}, {"corpus": "code", "keep": "random 0.3"}],
    }
    for name, entries in datasets.items():
        phase = PhaseRecipe.model_validate({"name": name, "order": "shuffle", "datasets": entries})
        build_phase(phase, corpora, root / "phases" / name, threads=1)
    return [root / "phases" / name for name in datasets]


@pytest.fixture(scope="module")
def naive(folders) -> np.ndarray:
    """Every document of every phase, one after another, straight from the files."""
    parts = []
    for folder in folders:
        stream = TokenStream([folder], VOCAB)
        prefixes = [corpus.prefix for corpus in stream.phases[0].corpora]
        corpora = [IndexedCorpus(prefix) for prefix in prefixes]
        for identifier in np.fromfile(folder / "order.bin", "<u8").tolist():
            parts.append(corpora[identifier >> 48].tokens(identifier & (2**48 - 1)))
    return np.concatenate(parts).astype(np.int64)


@pytest.fixture(scope="module")
def stream(folders) -> TokenStream:
    return TokenStream(folders, VOCAB)


def test_the_whole_stream(stream, naive):
    assert stream.tokens == len(naive)
    assert np.array_equal(stream.read(0, stream.tokens), naive)


@given(st.data())
def test_any_part(stream, naive, data):
    position = data.draw(st.integers(0, stream.tokens))
    edge = int(data.draw(st.sampled_from(stream.boundaries.tolist())))
    position = data.draw(st.sampled_from([position, min(max(edge - position % 50, 0), stream.tokens)]))
    count = data.draw(st.integers(0, min(5000, stream.tokens - position)))
    tokens = stream.read(position, count)
    assert tokens.dtype == np.int64
    assert np.array_equal(tokens, naive[position : position + count])


def test_samples_in_any_order_are_the_same(folders, naive):
    length = 64
    starts = np.arange(0, len(naive) - length, length)
    np.random.default_rng(6).shuffle(starts)
    stream = TokenStream(folders, VOCAB)
    for start in starts.tolist():
        tokens, labels = stream.sample(start, length)
        assert np.array_equal(tokens, naive[start : start + length])
        assert np.array_equal(labels, naive[start + 1 : start + length + 1])


def test_phase_at(stream):
    for index, start in enumerate(stream.boundaries[:-1].tolist()):
        assert stream.phase_at(start) == (index, 0)
        assert stream.phase_at(start + stream.phases[index].tokens - 1) == (index, stream.phases[index].tokens - 1)


def test_a_forked_process_reads_the_same(stream, naive):
    stream.read(100, 10)  # a warm cache in the parent must not matter
    positions = [0, 5000, 100, stream.tokens - 300, int(stream.boundaries[1]) - 5]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        parts = pool.starmap(stream.read, [(position, 300) for position in positions])
    assert all(np.array_equal(part, naive[at : at + 300]) for part, at in zip(parts, positions, strict=True))


@pytest.mark.parametrize(("position", "count"), [(-1, 2), (0, -1), (10**9, 1)])
def test_outside_the_stream(stream, position, count):
    with pytest.raises(UserError, match=rf"holds {stream.tokens} tokens, but \[{position}, {position + count}\)"):
        stream.read(position, count)


def test_the_last_sample(stream):
    stream.sample(stream.tokens - 65, 64)
    with pytest.raises(UserError, match=r"lower train\.train_tokens or add phases"):
        stream.sample(stream.tokens - 64, 64)


def phase_of(prefix: Path, folder: Path) -> Path:
    phase = PhaseRecipe.model_validate({"name": "phase", "order": "shuffle", "datasets": [{"corpus": "web"}]})
    build_phase(phase, {"web": prefix}, folder, threads=1)
    return folder


def test_an_id_outside_the_vocabulary(tmp_path):
    prefix = write_corpus(tmp_path / "web", [[1, 2], [3, 400, 5], [6]])
    folder = phase_of(prefix, tmp_path / "phase")
    with pytest.raises(UserError, match=r"web holds token id 400, but the model's vocab_size is 400: train with the"):
        TokenStream([folder], 400)
    assert TokenStream([folder], 401).tokens == 6


def test_an_id_outside_the_vocabulary_of_a_corpus_without_manifest(tmp_path):
    prefix = write_corpus(tmp_path / "web", [[1, 2], [3, 400, 5], [6]])
    Path(f"{prefix}.manifest.json").unlink()
    stream = TokenStream([phase_of(prefix, tmp_path / "phase")], 400)
    with pytest.raises(UserError, match=rf"{prefix}: sequence 1 holds token id 400, but the model's vocab_size is 400"):
        stream.read(0, 6)


def test_a_negative_id(tmp_path):
    """A 32-bit corpus that was damaged before its order was built."""
    prefix = write_corpus(tmp_path / "web", [[1, 2, 3]], vocab=100_000)
    np.array([1, -2, 3], "<i4").tofile(f"{prefix}.bin")
    folder = phase_of(prefix, tmp_path / "phase")
    with pytest.raises(UserError, match="sequence 0 holds token id -2"):
        TokenStream([folder], 100_000).read(0, 3)


def test_sequences_without_tokens_are_passed_over(tmp_path):
    """Megatron's own builder can write them."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = tmp_path / "web"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    documents = [[], [1, 2], [], [], [3], []]
    for document in documents:
        builder.add_document(np.array(document, np.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")
    stream = TokenStream([phase_of(prefix, tmp_path / "phase")], 10)
    whole = stream.read(0, 3)
    assert sorted(whole.tolist()) == [1, 2, 3]
    assert [int(stream.read(position, 1)[0]) for position in (2, 0, 1)] == whole[[2, 0, 1]].tolist()
