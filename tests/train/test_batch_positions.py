"""The tokens of a run do not depend on how it is laid out, and a change in mid-run loses and repeats none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.config import TrainConfig
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.train.batch import sample_positions
from tests.helpers.files.phase_files import Entry, write_pair, write_phase

VOCAB = 50_000


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> TokenStream:
    """Two phases in which every token is another, so that none can stand for another one."""
    root = tmp_path_factory.mktemp("distinct")
    tokens = np.random.default_rng(8).permutation(VOCAB)
    sequences = [part.tolist() for part in np.split(tokens, np.sort(np.random.default_rng(9).integers(0, VOCAB, 700)))]
    prefixes = {"web": write_pair(root / "web", sequences, 4)}
    entries = [Entry(0, row, 0, len(sequence)) for row, sequence in enumerate(sequences)]
    folders = [write_phase(root / str(half), prefixes, entries[half::2], stride=32) for half in (0, 1)]
    return TokenStream(folders, VOCAB)


@st.composite
def layouts(draw) -> tuple[TrainConfig, int]:
    """A batch, and a number of data-parallel ranks that divides it."""
    micro, ranks, stripes = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sizes = {"micro_batch_size": micro, "global_batch_size": micro * ranks * stripes}
    return TrainConfig(seq_length=draw(st.integers(1, 300)), train_tokens=None, **sizes), ranks


def batch_of(stream: TokenStream, position: int, train: TrainConfig, ranks: int) -> dict[int, tuple]:
    """Tokens and labels of a global batch by sample, gathered from all ranks."""
    samples: dict[int, tuple] = {}
    for rank in range(ranks):
        micro_batches = sample_positions(position, train, rank, ranks)
        assert len(micro_batches) == train.global_batch_size // (train.micro_batch_size * ranks)
        for positions in micro_batches:
            read, _ = stream.read_batch(positions, train.seq_length + 1)
            for start, row in zip(positions.tolist(), read.tolist(), strict=True):
                assert start not in samples
                samples[start] = row[:-1], row[1:]
    return samples


@given(st.data())
def test_every_layout_gives_the_same_global_batch(stream, data):
    train, ranks = data.draw(layouts())
    position = data.draw(st.integers(0, stream.tokens - 1 - train.tokens_per_step))
    alone = train.model_copy(update={"micro_batch_size": 1})
    assert batch_of(stream, position, train, ranks) == batch_of(stream, position, alone, 1)


@given(st.lists(layouts(), max_size=12))
def test_changes_in_mid_run_lose_and_repeat_nothing(stream, steps):
    """Each step has a sequence length, a batch and a number of ranks of its own."""
    position, tokens, labels = 0, [], []
    for train, ranks in steps:
        if position + train.tokens_per_step >= stream.tokens:
            break
        samples = batch_of(stream, position, train, ranks)
        for start in sorted(samples):
            tokens += samples[start][0]
            labels += samples[start][1]
        position += train.tokens_per_step
    whole = stream.read(0, position + 1).tolist()
    assert tokens == whole[:-1] and len(set(tokens)) == len(tokens)
    assert labels == whole[1:]
