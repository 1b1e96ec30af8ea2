"""Sequences of corpora in a given order, against slicing and joining bytes in plain Python."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _index
from tests.helpers.references.index import ITEM_SIZES, laid_out

CODE = 8


@st.composite
def corpora(draw: st.DrawFn) -> tuple[int, list[tuple[bytes, list[int], list[int]]], list[int]]:
    """A dtype code; corpora as (.bin, lengths, pointers), whose sequences may overlap; entries of an order."""
    code = draw(st.sampled_from(sorted(ITEM_SIZES)))
    size, found = ITEM_SIZES[code], []
    for _ in range(draw(st.integers(1, 3))):
        tokens = draw(st.binary(max_size=25 * size).map(lambda raw: raw[: len(raw) // size * size]))
        spans = draw(
            st.lists(st.tuples(st.integers(0, len(tokens) // size), st.integers(0, len(tokens) // size)), max_size=6)
        )
        lengths = [abs(one - other) for one, other in spans]
        found.append((tokens, lengths, [size * min(span) for span in spans]))
    known = [(at << 48) | row for at, (_, lengths, _) in enumerate(found) for row in range(len(lengths))]
    return code, found, draw(st.lists(st.sampled_from(known), max_size=20)) if known else []


def write_corpora(
    folder: Path, code: int, found: list[tuple[bytes, list[int], list[int]]]
) -> list[tuple[bytes, bytes]]:
    paths = []
    for at, (tokens, lengths, pointers) in enumerate(found):
        (folder / f"{at}.bin").write_bytes(tokens)
        (folder / f"{at}.idx").write_bytes(laid_out(lengths, pointers, [0, len(lengths)], code))
        paths.append((os.fsencode(folder / f"{at}.idx"), os.fsencode(folder / f"{at}.bin")))
    return paths


def write(folder: Path, paths: list[tuple[bytes, bytes]], entries: list[int], cut: int = 7, tokens: bool = True) -> int:
    index, data = os.fsencode(folder / "new.idx"), os.fsencode(folder / "new.bin") if tokens else b""
    writer = _index.OrderedWriter(index, data, len(entries), paths)
    for at in range(0, len(entries), cut):
        writer.add(np.array(entries[at : at + cut], np.uint64), 2)
    writer.finish()
    return writer.tokens


@given(corpora(), st.integers(1, 9))
@settings(max_examples=60)
def test_bytes_are_those_of_slicing_and_joining(case, cut):
    code, found, entries = case
    size = ITEM_SIZES[code]
    rows = [(found[entry >> 48], entry & (1 << 48) - 1) for entry in entries]
    parts = [tokens[pointers[row] : pointers[row] + lengths[row] * size] for (tokens, lengths, pointers), row in rows]
    lengths = [len(part) // size for part in parts]
    ends = [0, *accumulate(map(len, parts))]
    documents = list(range(len(entries) + 1))
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_corpora(folder, code, found)
        assert write(folder, paths, entries, cut) == sum(lengths)
        assert (folder / "new.bin").read_bytes() == b"".join(parts)
        assert (folder / "new.idx").read_bytes() == laid_out(lengths, ends[:-1], documents, code)
        if len(found) == 1:
            (folder / "new.bin").unlink()
            assert write(folder, paths, entries, cut, tokens=False) == sum(lengths)
            pointers = [found[0][2][row] for _, row in rows]
            assert (folder / "new.idx").read_bytes() == laid_out(lengths, pointers, documents, code)
            assert not (folder / "new.bin").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (1 << 48, "the order names sequence 0 of corpus 1, which does not exist"),
        (2, "the order names sequence 2 of corpus 0, which does not exist"),
        (0xFFFF << 48, "the order names sequence 0 of corpus 65535, which does not exist"),
        (1, "sequence 1 of corpus 0 does not lie inside its .bin"),
    ],
)
def test_an_entry_without_tokens_is_refused(tmp_path: Path, entry: int, message: str):
    for lengths, pointers in (([2, 3], [0, 4]), ([2, -1], [0, 0]), ([2, 1], [0, 3]), ([2, 1], [0, 2**63 - 1])):
        paths = write_corpora(tmp_path, CODE, [(bytes(8), lengths, pointers)])
        with pytest.raises(ValueError, match=message):
            write(tmp_path, paths, [0, entry])


def test_announced_entries_and_corpora_must_fit(tmp_path: Path):
    paths = write_corpora(tmp_path, CODE, [(bytes(8), [2, 2], [0, 4])])
    new = os.fsencode(tmp_path / "new.idx"), os.fsencode(tmp_path / "new.bin")
    writer = _index.OrderedWriter(*new, 2, paths)
    writer.add(np.array([1], np.uint64))
    with pytest.raises(ValueError, match="1 entries where 2 were announced"):
        writer.finish()
    with pytest.raises(ValueError, match="more than the 2 entries announced"):
        writer.add(np.array([1, 0], np.uint64))
    with pytest.raises(TypeError):
        writer.add(np.array([1], np.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"into one \.bin, not into 2"):
        _index.OrderedWriter(new[0], b"", 0, paths * 2)
    with pytest.raises(ValueError, match="there is no corpus"):
        _index.OrderedWriter(*new, 0, [])
    with pytest.raises(FileNotFoundError):
        _index.OrderedWriter(*new, 0, [(paths[0][0], b"none.bin")])
    (tmp_path / "other").mkdir()
    other = write_corpora(tmp_path / "other", 4, [(bytes(8), [1], [0])])
    with pytest.raises(ValueError, match=r"dtype code 4 of .*other/0.idx is not 8, that of .*/0.idx"):
        _index.OrderedWriter(*new, 0, [*paths, *other])
