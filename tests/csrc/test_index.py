"""The index writer, checker and merger against the format written out in plain Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _index
from tests.helpers.references.index import ITEM_SIZES, index_bytes, is_contiguous, is_sound, laid_out

codes = st.sampled_from(sorted(ITEM_SIZES))
length_lists = st.lists(st.integers(0, 3) | st.integers(0, 2**31 - 1), max_size=30)
# More sequences than a piece of the writer, the checker and the merger has.
MANY = 600_000


def write(path: Path, batches: list[list[int]], code: int = 8, threads: int = 1) -> bytes:
    writer = _index.IndexWriter(os.fsencode(path), code)
    for batch in batches:
        writer.add(np.array(batch, np.int32))
    writer.finish(threads)
    return path.read_bytes()


def check(path: Path, raw: bytes, bin_size: int, threads: int = 1):
    path.write_bytes(raw)
    return _index.check(os.fsencode(path), bin_size, threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@given(st.lists(length_lists, max_size=4), codes, st.integers(0, 3))
def test_the_writer_equals_the_reference(folder: Path, batches, code, threads):
    lengths = [length for batch in batches for length in batch]
    raw = write(folder / "a.idx", batches, code, threads)
    assert raw == index_bytes(lengths, code)
    tokens = sum(lengths)
    sequences = sum(length > 0 for length in lengths)
    header = (code, sequences, len(lengths) + 1)
    assert _index.check(os.fsencode(folder / "a.idx"), tokens * ITEM_SIZES[code]) == (header, tokens, True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("empty", [0.0, 0.3, 1.0])
def test_long_arrays_are_the_same_for_any_number_of_threads(folder: Path, threads: int, empty: float):
    generator = np.random.default_rng(7)
    lengths = np.where(generator.random(MANY) < empty, 0, generator.integers(1, 2**31, MANY)).astype(np.int32)
    lengths[300_000:300_100] = 0  # a long gap, inside a piece
    path = folder / "long.idx"
    writer = _index.IndexWriter(os.fsencode(path), 4)
    for part in np.array_split(lengths, 7):
        writer.add(part)
    assert (writer.documents, writer.sequences) == (MANY, np.count_nonzero(lengths))
    writer.finish(threads)
    kept = lengths[lengths > 0]
    ends = np.cumsum(kept, dtype=np.int64) * 4
    documents = np.cumsum(np.concatenate([[0], lengths > 0]), dtype=np.int64)
    arrays = kept.tobytes() + (ends - kept.astype(np.int64) * 4).tobytes() + documents.tobytes()
    assert path.read_bytes()[34:] == arrays
    bin_size = int(ends[-1]) if len(ends) else 0
    assert bin_size > 2**31 or empty == 1.0
    assert _index.check(os.fsencode(path), bin_size, threads)[1:] == (bin_size // 4, True)


@given(st.lists(st.tuples(length_lists, st.integers(0, 5)), min_size=1, max_size=5), codes, st.integers(1, 3))
def test_merged_parts_equal_one_writer(folder: Path, parts, code, threads):
    pairs = []
    for number, (lengths, _) in enumerate(parts):
        path = folder / f"part{number}.idx"
        write(path, [lengths], code)
        pairs.append((os.fsencode(path), sum(lengths) * ITEM_SIZES[code]))
    _index.merge(os.fsencode(folder / "merged.idx"), pairs, threads)
    assert (folder / "merged.idx").read_bytes() == index_bytes([x for lengths, _ in parts for x in lengths], code)


def test_merging_long_parts(folder: Path):
    lengths = np.random.default_rng(3).integers(0, 9, (2, MANY)).astype(np.int32)
    for number, part in enumerate(lengths):
        writer = _index.IndexWriter(os.fsencode(folder / f"{number}.idx"), 8)
        writer.add(part)
        writer.finish(2)
    whole = _index.IndexWriter(os.fsencode(folder / "whole.idx"), 8)
    whole.add(lengths.reshape(-1))
    whole.finish(2)
    pairs = [(os.fsencode(folder / f"{number}.idx"), int(part.sum()) * 2) for number, part in enumerate(lengths)]
    _index.merge(os.fsencode(folder / "merged.idx"), pairs, 3)
    assert (folder / "merged.idx").read_bytes() == (folder / "whole.idx").read_bytes()


def test_merging_keeps_permuted_pointers_on_their_tokens(folder: Path):
    permuted = laid_out([2, 1], [2, 0], [0, 1, 2], 8)
    check(folder / "p.idx", permuted, 6)
    _index.merge(os.fsencode(folder / "m.idx"), [(os.fsencode(folder / "p.idx"), 6)] * 2)
    assert (folder / "m.idx").read_bytes() == laid_out([2, 1, 2, 1], [2, 0, 8, 6], [0, 1, 2, 3, 4], 8)


sequences = st.lists(st.tuples(st.integers(-1, 4), st.integers(-2, 9)), max_size=4)


@given(sequences, st.lists(st.integers(-1, 5), max_size=5), codes | st.integers(0, 255), st.integers(0, 40))
@settings(max_examples=300)
def test_the_checker_agrees_with_the_reference(folder: Path, rows, documents, code, bin_size):
    raw = laid_out([length for length, _ in rows], [pointer for _, pointer in rows], documents, code)
    if not is_sound(raw, bin_size):
        with pytest.raises(ValueError, match=r"sequence|document ind|dtype"):
            check(folder / "c.idx", raw, bin_size)
        return
    header, tokens, contiguous = check(folder / "c.idx", raw, bin_size)
    assert header == (code, len(rows), len(documents))
    assert tokens == sum(length for length, _ in rows)
    assert contiguous == is_contiguous(raw, bin_size)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_of_several_errors_is_told_for_any_number_of_threads(folder: Path, threads: int):
    raw = bytearray(index_bytes([1] * MANY, 1))
    for row in (599_999, 300_007, 262_144):
        raw[34 + 4 * row : 38 + 4 * row] = (-row % 2**32).to_bytes(4, "little")
    with pytest.raises(ValueError, match="sequence 262144 has length -262144"):
        check(folder / "e.idx", bytes(raw), MANY, threads)
    raw = bytearray(index_bytes([1] * MANY, 1))
    at = 34 + 12 * MANY + 8 * 262_144
    raw[at : at + 8] = (5).to_bytes(8, "little")
    with pytest.raises(ValueError, match="document index 262144 is below"):
        check(folder / "e.idx", bytes(raw), MANY, threads)


def test_counts_beyond_32_bits():
    """Joined sizes are added and never built: 2^40 sequences are 20 TB of index."""
    header = (8, 2**40, 2**40 + 1)
    assert _index.joined([(header, 2**41)] * 3) == (8, 3 * 2**40, 3 * 2**40 + 1)
    for wrong in ([((8, 2**60, 2**60 + 1), 0)] * 2, [((8, 1, 2), 2**62)] * 2, [((8, 2**64 - 1, 1), 0)]):
        with pytest.raises(ValueError, match="more than 2\\^63 - 1 bytes"):
            _index.joined(wrong)
    with pytest.raises(ValueError, match="dtype code 4 cannot be joined to 8"):
        _index.joined([(header, 0), ((4, 1, 2), 0)])
    with pytest.raises(ValueError, match="no document index"):
        _index.joined([((8, 0, 0), 0)])
    with pytest.raises(ValueError, match="nothing to join"):
        _index.joined([])


def test_the_writer_refuses(folder: Path):
    writer = _index.IndexWriter(os.fsencode(folder / "r.idx"), 8)
    writer.add(np.array([3], np.int32))
    with pytest.raises(ValueError, match="document 1 has length -1"):
        writer.add(np.array([7, -1], np.int32))
    for wide in (np.int64, np.float64, np.uint32):
        with pytest.raises(TypeError):
            writer.add(np.array([1], wide))
    writer.finish()
    assert (folder / "r.idx").read_bytes() == index_bytes([3], 8)
    with pytest.raises(RuntimeError, match="finished"):
        writer.add(np.array([3], np.int32))
    for code in (0, 6, 7, 9, 255):
        with pytest.raises(ValueError, match="dtype code"):
            _index.IndexWriter(os.fsencode(folder / "r.idx"), code)


def test_what_the_system_refuses_names_the_file(folder: Path):
    missing = folder / "none" / "a.idx"
    for call in (lambda: _index.IndexWriter(os.fsencode(missing), 8), lambda: _index.check(os.fsencode(missing), 0)):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.filename == str(missing)


def test_a_full_disk_is_an_error(folder: Path):
    code = (
        "import resource, sys, numpy as np\n"
        "from data_tools import _index\n"
        "sys.dont_write_bytecode = True  # the limit would cut it off\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "writer = _index.IndexWriter(sys.argv[1].encode(), 8)\n"
        "writer.add(np.ones(20_000, np.int32))\n"
        "writer.finish(2)\n"
    )
    command = [sys.executable, "-c", code, str(folder / "full.idx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in done.stderr


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_read(tmp_path: Path, make):
    make(tmp_path / "x.idx")
    with pytest.raises(ValueError, match="no regular file"):
        _index.check(os.fsencode(tmp_path / "x.idx"), 0)


def test_file_names_need_not_be_utf8(tmp_path: Path):
    path = os.fsencode(tmp_path) + b"/\xff.idx"
    writer = _index.IndexWriter(path, 8)
    writer.finish()
    assert _index.header(path) == (8, 0, 1)


def test_two_threads_may_add_to_one_writer(folder: Path):
    writer = _index.IndexWriter(os.fsencode(folder / "t.idx"), 8)
    batch = np.ones(100_000, np.int32)
    helpers = [threading.Thread(target=lambda: [writer.add(batch) for _ in range(5)]) for _ in range(4)]
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join()
    writer.finish(2)
    assert _index.check(os.fsencode(folder / "t.idx"), 4_000_000) == ((8, 2_000_000, 2_000_001), 2_000_000, True)
