"""The corpus reader against bytes laid out by hand from the format's description."""

from __future__ import annotations

import itertools
import os
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.data import indexed
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError

CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
DOCUMENTS = [[5, 6, 7], [8], [9, 10]]


def write_pair(prefix: Path, documents: list[list[int]], code: int = 8, indices: list[int] | None = None) -> Path:
    dtype = np.dtype(CODES[code])
    lengths = [len(document) for document in documents]
    pointers = [sum(lengths[:i]) * dtype.itemsize for i in range(len(lengths))]
    indices = list(range(len(lengths) + 1)) if indices is None else indices
    prefix.with_name(prefix.name + ".bin").write_bytes(np.array([*chain(*documents)], dtype).tobytes())
    prefix.with_name(prefix.name + ".idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(indices))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(pointers)}q", *pointers)
        + struct.pack(f"<{len(indices)}q", *indices)
    )
    return prefix


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return write_pair(tmp_path / "name.with.dots", DOCUMENTS)


def patch(path: Path, offset: int, raw: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(raw)] = raw
    path.write_bytes(content)


@pytest.mark.parametrize("code", CODES)
def test_reads_every_token_type(tmp_path: Path, code: int):
    corpus = IndexedCorpus(write_pair(tmp_path / "corpus", DOCUMENTS, code))
    assert [corpus.tokens(i).tolist() for i in range(len(corpus))] == DOCUMENTS
    assert corpus.dtype == np.dtype(CODES[code])
    assert corpus.num_tokens == 6
    assert corpus.document_indices.tolist() == [0, 1, 2, 3]


@given(st.lists(st.lists(st.integers(0, 65499), max_size=9), max_size=9), st.integers(-12, 12), st.integers(-12, 12))
def test_a_part_of_a_sequence_is_a_slice(tmp_path_factory, documents, start, stop):
    corpus = IndexedCorpus(write_pair(tmp_path_factory.mktemp("slices") / "corpus", documents))
    assert len(corpus) == len(documents)
    for i, document in enumerate(documents):
        assert corpus.tokens(i, start, stop).tolist() == document[start:stop]
        assert corpus.tokens(i, start).tolist() == document[start:]


def test_tokens_are_a_read_only_view(pair: Path):
    tokens = IndexedCorpus(pair).tokens(0)
    assert tokens.base is not None
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_an_index_may_permute_and_repeat_pointers(pair: Path):
    index = pair.with_name(pair.name + ".idx")
    patch(index, 34, struct.pack("<3i3q", 2, 3, 2, 8, 0, 8))
    corpus = IndexedCorpus(pair)
    assert [corpus.tokens(i).tolist() for i in range(3)] == [[9, 10], [5, 6, 7], [9, 10]]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_checks_reach_every_part_of_a_long_index(pair: Path, monkeypatch: pytest.MonkeyPatch, rows: int):
    monkeypatch.setattr(indexed, "_CHECK_ROWS", rows)
    assert IndexedCorpus(pair).num_tokens == 6
    patch(pair.with_name(pair.name + ".idx"), 34 + 12 + 16, struct.pack("<q", 100))
    with pytest.raises(UserError, match="sequence 2"):
        IndexedCorpus(pair)
    write_pair(pair, DOCUMENTS, indices=[0, 2, 1, 3])
    with pytest.raises(UserError, match="document index 2 is below"):
        IndexedCorpus(pair)


DAMAGES = {
    "magic": (0, b"X", "is no .idx file"),
    "version": (9, struct.pack("<Q", 2), "version 2"),
    "unknown type": (17, b"\x63", "dtype code 99"),
    "float type": (17, b"\x07", "floating-point"),
    "more sequences than the file": (18, struct.pack("<Q", 4), "truncated"),
    "absurd number of sequences": (18, struct.pack("<Q", 2**63), "truncated"),
    "fewer sequences than the file": (18, struct.pack("<Q", 2), "trailing bytes"),
    "negative length": (34, struct.pack("<i", -1), "sequence 0 has length -1"),
    "length beyond the bin": (34, struct.pack("<i", 7), "truncated or of another corpus"),
    "negative pointer": (46, struct.pack("<q", -2), "pointer -2"),
    "pointer inside a token": (46, struct.pack("<q", 1), "pointer 1"),
    "pointer beyond the bin": (54, struct.pack("<q", 12), "sequence 1"),
    "pointer near overflow": (54, struct.pack("<q", 2**63 - 2), "sequence 1"),
    "first document": (70, struct.pack("<q", 1), "from 0 to 3"),
    "documents fall": (78, struct.pack("<q", 3), "document index 2 is below"),
    "last document": (94, struct.pack("<q", 2), "from 0 to 3"),
}


@pytest.mark.parametrize(("offset", "raw", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_refused_in_one_line(pair: Path, offset: int, raw: bytes, message: str):
    patch(pair.with_name(pair.name + ".idx"), offset, raw)
    with pytest.raises(UserError, match=message) as caught:
        IndexedCorpus(pair)
    assert pair.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_a_truncated_file_is_refused_wherever_it_ends(pair: Path, suffix: str):
    path = pair.with_name(pair.name + suffix)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=path.name):
            IndexedCorpus(pair)


def test_trailing_bytes_are_refused_and_modes_are_explained(pair: Path):
    index = pair.with_name(pair.name + ".idx")
    whole = index.read_bytes()
    index.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="1 trailing bytes"):
        IndexedCorpus(pair)
    index.write_bytes(whole + b"\0\0\0")
    with pytest.raises(UserError, match="multimodal"):
        IndexedCorpus(pair)


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_a_missing_file_is_named(pair: Path, suffix: str):
    path = pair.with_name(pair.name + suffix)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}.*not found"):
        IndexedCorpus(pair)


def test_fingerprint_follows_the_index_and_the_size_of_the_tokens(pair: Path, tmp_path: Path):
    first = IndexedCorpus(pair).fingerprint()
    same = write_pair(tmp_path / "other", DOCUMENTS)
    assert IndexedCorpus(same).fingerprint() == first
    longer = same.with_name("other.bin")
    longer.write_bytes(longer.read_bytes() + b"\0\0")
    assert IndexedCorpus(same).fingerprint() != first


def test_an_empty_corpus_is_a_corpus(tmp_path: Path):
    corpus = IndexedCorpus(write_pair(tmp_path / "empty", []))
    assert (len(corpus), corpus.num_tokens, corpus.document_indices.tolist()) == (0, 0, [0])


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_opened(pair: Path, suffix: str, make):
    """A pipe would be waited for, for ever."""
    path = pair.with_name(pair.name + suffix)
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=f"{path.name}: is no regular file"):
        IndexedCorpus(pair)


def test_lengths_alone_need_no_tokens(pair: Path):
    pair.with_name(pair.name + ".bin").unlink()
    index = pair.with_name(pair.name + ".idx")
    assert indexed.map_lengths(index).tolist() == [3, 1, 2]
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        indexed.map_lengths(index)


def test_rows_that_nobody_checked_are_refused_when_they_are_read(pair: Path):
    patch(pair.with_name(pair.name + ".idx"), 54, struct.pack("<q", 12))
    corpus = IndexedCorpus(pair, check=None)
    assert corpus.tokens(0).tolist() == DOCUMENTS[0]
    for sequence in (1, -2):
        with pytest.raises(UserError, match="sequence 1"):
            corpus.tokens(sequence)
    with pytest.raises(IndexError):
        corpus.tokens(3)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_together_check_every_row(pair: Path, parts: int):
    """Each damage is found by one part at least, and by opening without a check only in the last rows."""
    index = pair.with_name(pair.name + ".idx")
    whole = index.read_bytes()
    damages = [(34 + 4 * row, struct.pack("<i", -1)) for row in range(3)]
    damages += [(46 + 8 * row, struct.pack("<q", 11)) for row in range(3)]
    damages += [(70 + 8 * row, struct.pack("<q", 9)) for row in range(4)]
    for offset, raw in damages:
        index.write_bytes(whole)
        patch(index, offset, raw)
        refused = 0
        for part in range(parts):
            try:
                IndexedCorpus(pair, check=(part, parts))
            except UserError as error:
                assert pair.name in str(error)
                refused += 1
        assert refused


def test_shares_cover_every_row_once():
    for count in (0, 1, 7, 2**40):
        for parts in (1, 3, 10):
            shares = [indexed.share(count, part, parts) for part in range(parts)]
            assert shares[0][0] == 0 and shares[-1][1] == count
            assert all(before[1] == after[0] for before, after in itertools.pairwise(shares))


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_the_sample_covers_small_files_whole(tmp_path: Path, suffix: str):
    prefix = write_pair(tmp_path / "corpus", [[7] * 100] * 200)
    path = prefix.with_name(prefix.name + suffix)
    whole = path.read_bytes()
    first = IndexedCorpus(prefix).sample_fingerprint()
    assert IndexedCorpus(prefix, check=None).sample_fingerprint() == first
    for at in np.random.default_rng(3).integers(64, len(whole), 20).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert IndexedCorpus(prefix, check=None).sample_fingerprint() != first
        except UserError as error:
            assert path.name in str(error) or "truncated or of another corpus" in str(error)


def test_the_sample_of_a_large_file_follows_its_size_and_its_ends(tmp_path: Path):
    """A sparse file of a gigabyte: only what is sampled is read."""
    prefix = write_pair(tmp_path / "corpus", DOCUMENTS)
    tokens = prefix.with_name("corpus.bin")
    found = set()
    for size in (1 << 30, (1 << 30) + 2):
        os.truncate(tokens, size)
        found.add(IndexedCorpus(prefix).sample_fingerprint())
    with open(tokens, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    found.add(IndexedCorpus(prefix).sample_fingerprint())
    assert len(found) == 3
