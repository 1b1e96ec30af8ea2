"""Megatron Core trains from our corpora as they are: its own builder, index builder and datasets on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.megatron_tokenizer import MegatronLegacyTokenizer

from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.corpora.merge import merge_corpora
from megatron_kaiyuan.data.indexed import IndexedCorpus

SEQ_LENGTH, SAMPLES = 16, 60


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    """The blended dataset asks for the rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Tokenizer(MegatronLegacyTokenizer):
    """A text is its ids in decimal; GPTDataset asks for the id that ends a document."""

    def __init__(self, vocab_size: int):
        super().__init__("none")
        self._vocab_size = vocab_size

    def tokenize(self, text: str) -> np.ndarray:
        return np.array(text.split(), np.int64)

    @property
    def vocab(self) -> dict:
        return {}

    @property
    def inv_vocab(self) -> dict:
        return {}

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def eod(self) -> int:
        return 0


def corpus(prefix: Path, vocab_size: int, seed: int) -> Path:
    """Documents of random ids that end with 0, some of them empty."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 40, 50)
    lengths[::9] = 0
    tokens = generator.integers(1, vocab_size, lengths.sum())
    ends = np.cumsum(lengths)
    tokens[ends[lengths > 0] - 1] = 0
    description = {"path": "t.json", "fingerprint": "xxh3:0", "vocab_size": vocab_size, "eod_id": 0}
    with CorpusWriter(prefix, description) as writer:
        writer.add(Documents(tokens, lengths, lengths, [""] * len(lengths), [""] * len(lengths)))
    return prefix


@pytest.mark.parametrize("vocab_size", [1000, 70_000], ids=["uint16", "int32"])
def test_gpt_dataset_samples_are_our_tokens(tmp_path: Path, vocab_size: int) -> None:
    parts = [corpus(tmp_path / name, vocab_size, seed) for seed, name in enumerate("ab")]
    merge_corpora(parts, tmp_path / "joined")
    ours, theirs = IndexedCorpus(tmp_path / "joined"), IndexedDataset(str(tmp_path / "joined"))
    assert len(ours) == len(theirs)
    assert all(np.array_equal(ours.tokens(i), theirs[i]) for i in range(len(ours)))
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQ_LENGTH,
        blend=([str(tmp_path / "joined"), str(parts[0])], [0.7, 0.3]),
        split="90,10,0",
        path_to_cache=str(tmp_path / "cache"),
        tokenizer=Tokenizer(vocab_size),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    train, valid, test = BlendedMegatronDatasetBuilder(GPTDataset, [SAMPLES, 10, 0], lambda: True, config).build()
    assert (len(train), test) == (SAMPLES, None)
    assert len(valid) >= 10
    streams = {0: stream(ours), 1: stream(IndexedCorpus(parts[0]))}
    for i in range(SAMPLES):
        sample = train[i]
        tokens, labels = sample["tokens"].tolist(), sample["labels"].tolist()
        assert tokens[1:] == labels[:-1]
        assert len(tokens) == SEQ_LENGTH
        # A sample is whole pieces of documents, in an order of Megatron's.
        for piece in pieces([*tokens, labels[-1]]):
            assert piece in streams[int(train.dataset_index[i])]


def stream(opened: IndexedCorpus) -> str:
    return " " + " ".join(str(token) for i in range(len(opened)) for token in opened.tokens(i).tolist()) + " "


def pieces(tokens: list[int]) -> list[str]:
    """The sample cut after each end of a document."""
    found: list[list[int]] = [[]]
    for token in tokens:
        found[-1].append(token)
        if token == 0:
            found.append([])
    return [f" {' '.join(map(str, piece))} " for piece in found if piece]
