"""Pairs that Megatron's own builder wrote, some with several sequences a document: verified, and joined as it joins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from data_tools.corpora.corpus import CorpusWriter
from data_tools.corpora.merge import merge_corpora
from data_tools.corpora.verify import verify
from megatron_kaiyuan.data.indexed import bin_path, idx_path
from megatron_kaiyuan.errors import UserError

DOCUMENTS = [[[1, 2, 3], [4]], [[5]], [[6, 7], [], [8]]]


def build(prefix: Path, documents: list[list[list[int]]], dtype: type = np.uint16) -> Path:
    builder = IndexedDatasetBuilder(str(bin_path(prefix)), dtype=dtype)
    for document in documents:
        builder.add_document(
            torch.tensor([token for sentence in document for token in sentence]), [len(one) for one in document]
        )
    builder.finalize(str(idx_path(prefix)))
    return prefix


def contents(prefix: Path) -> list[bytes]:
    return [bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8])
def test_joined_as_megatron_joins(tmp_path: Path, dtype: type) -> None:
    parts = [build(tmp_path / f"part{i}", DOCUMENTS[i:], dtype) for i in range(4)]
    found = [verify(part) for part in parts]
    assert [(pair.sequences, pair.tokens, pair.is_stock) for pair in found] == [
        (6, 8, True),
        (4, 4, True),
        (3, 3, True),
        (0, 0, True),
    ]
    assert "4 stock pairs joined, 13 sequences, 15 tokens" in merge_corpora(parts, tmp_path / "all")
    builder = IndexedDatasetBuilder(str(bin_path(tmp_path / "theirs")), dtype=dtype)
    for part in parts:
        builder.add_index(str(part))
    builder.finalize(str(idx_path(tmp_path / "theirs")))
    assert contents(tmp_path / "all") == contents(tmp_path / "theirs")
    assert verify(tmp_path / "all").tokens == 15
    # The same again is allowed; other pairs need --force; what was changed is not replaced.
    merge_corpora(parts, tmp_path / "all")
    with pytest.raises(UserError, match="--force"):
        merge_corpora(parts[:2], tmp_path / "all")
    merge_corpora(parts[:2], tmp_path / "all", force=True)
    bin_path(tmp_path / "all").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"all\.bin: was changed after it was written"):
        merge_corpora(parts[:2], tmp_path / "all", force=True)


def test_damage_is_found(tmp_path: Path) -> None:
    prefix = build(tmp_path / "pair", DOCUMENTS, np.int32)
    whole = contents(prefix)
    for cut in range(len(whole[0])):
        bin_path(prefix).write_bytes(whole[0][:cut])
        with pytest.raises(UserError, match=r"pair\.idx: sequence \d has length .* in a \.bin of"):
            verify(prefix, fast=True)
    bin_path(prefix).write_bytes(whole[0][:-1] + b"\xff")
    with pytest.raises(UserError, match=r"pair\.bin: holds negative ids"):
        verify(prefix)
    bin_path(prefix).write_bytes(whole[0])
    for cut in range(len(whole[1])):
        idx_path(prefix).write_bytes(whole[1][:cut])
        with pytest.raises(UserError, match=r"pair\.idx: "):
            verify(prefix)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    pair, other = build(tmp_path / "pair", DOCUMENTS), build(tmp_path / "other", DOCUMENTS, np.int32)
    with pytest.raises(UserError, match=r"cannot be joined.*; join pairs of one type of tokens"):
        merge_corpora([pair, other], tmp_path / "all")
    with CorpusWriter(tmp_path / "ours", {"path": "t", "fingerprint": "xxh3:0", "vocab_size": 9, "eod_id": 0}):
        pass
    with pytest.raises(UserError, match=r"pair: is a stock pair, .* and .*ours is not"):
        merge_corpora([pair, tmp_path / "ours"], tmp_path / "all")
    with pytest.raises(UserError, match="pair: is named twice"):
        merge_corpora([pair, pair], tmp_path / "all")
    assert not list(tmp_path.glob("all*"))
