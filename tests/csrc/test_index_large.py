"""Beyond 2^31: sparse files with pointers past 2 GiB and with more sequences than 32 bits can count."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from data_tools import _index
from megatron_kaiyuan.data.indexed import IndexedCorpus

# Two of these sequences of int32 tokens end beyond 2^32 bytes; no place of a file with holes is taken on the disk.
LONG = 600_000_000
TAIL = [7, 8, 70_000]


def write_sparse(prefix: Path) -> Path:
    writer = _index.IndexWriter(os.fsencode(f"{prefix}.idx"), 4)
    writer.add(np.array([LONG, 0, LONG, len(TAIL)], np.int32))
    writer.finish(2)
    with open(f"{prefix}.bin", "wb") as file:
        file.seek(8 * LONG)
        file.write(np.array(TAIL, np.int32).tobytes())
    return prefix


def test_pointers_beyond_four_gigabytes(tmp_path: Path):
    prefix = write_sparse(tmp_path / "corpus")
    corpus = IndexedCorpus(prefix)
    assert corpus.pointers.tolist() == [0, 4 * LONG, 8 * LONG]
    assert corpus.tokens(2).tolist() == TAIL
    assert corpus.tokens(1, LONG - 2).tolist() == [0, 0]
    assert corpus.num_tokens == 2 * LONG + len(TAIL)
    size = 8 * LONG + 12
    assert _index.check(os.fsencode(f"{prefix}.idx"), size) == ((4, 3, 5), 2 * LONG + 3, True)
    with pytest.raises(ValueError, match=f"sequence 2 has length 3 and pointer {8 * LONG}"):
        _index.check(os.fsencode(f"{prefix}.idx"), size - 4)
    megatrons = IndexedDataset(str(prefix))
    assert megatrons[2].tolist() == TAIL
    assert megatrons.document_indices.tolist() == [0, 1, 1, 2, 3]


def test_merged_pointers_beyond_four_gigabytes(tmp_path: Path):
    prefix = write_sparse(tmp_path / "corpus")
    size = 8 * LONG + 12
    _index.merge(os.fsencode(tmp_path / "joined.idx"), [(os.fsencode(f"{prefix}.idx"), size)] * 3, 2)
    with open(tmp_path / "joined.bin", "wb") as file:
        for part in range(3):
            file.seek(part * size + 8 * LONG)
            file.write(np.array(TAIL, np.int32).tobytes())
    corpus = IndexedCorpus(tmp_path / "joined")
    assert [corpus.tokens(i).tolist() for i in (2, 5, 8)] == [TAIL] * 3
    assert int(corpus.pointers[8]) == 2 * size + 8 * LONG > 2**33
    assert _index.check(os.fsencode(tmp_path / "joined.idx"), 3 * size)[1:] == (3 * (2 * LONG + 3), True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_sequences_than_32_bits_count(tmp_path: Path):
    """A hole of 52 GB is the index of 2^32 + 10 empty sequences in one document; the last of them is made wrong."""
    sequences, path = 2**32 + 10, tmp_path / "many.idx"
    size = 34 + 12 * sequences + 16
    if shutil.disk_usage(tmp_path).total < size // 2:
        pytest.skip("the file system is too small for such a file")
    with open(path, "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, sequences, 2))
        file.seek(size - 8)
        file.write(struct.pack("<q", sequences))
    threads = os.cpu_count() or 1
    assert _index.check(os.fsencode(path), 0, threads) == ((8, sequences, 2), 0, True)
    with open(path, "r+b") as file:
        file.seek(34 + 4 * (sequences - 1))
        file.write(struct.pack("<i", 1))
    with pytest.raises(ValueError, match=f"sequence {sequences - 1} has length 1 and pointer 0"):
        _index.check(os.fsencode(path), 0, threads)
