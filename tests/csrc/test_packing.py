"""Best-fit packing against its definition, one pack at a time, and its padding against packing without any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import _curriculum

PADDING = 65535 << 48
Entry = tuple[int, int, int]  # entry, first token, tokens


def pack(lengths: list[int], pack_length: int, window: int, cuts: tuple[int, ...] = ()) -> list[Entry]:
    """Documents 0, 1, ... given to the packer in chunks."""
    packer = _curriculum.Packer(pack_length, window)
    entries = np.arange(len(lengths), dtype=np.uint64)
    parts = [
        packer.add(entries[first:last], np.array(lengths[first:last], np.int32))
        for first, last in itertools.pairwise([0, *cuts, len(lengths)])
    ]
    parts.append(packer.finish())
    found = [
        (int(entry), *piece) for chunk, pieces in parts for entry, piece in zip(chunk, pieces.tolist(), strict=True)
    ]
    assert packer.padding == sum(tokens for entry, _, tokens in found if entry == PADDING)
    assert packer.packs * pack_length == sum(tokens for *_, tokens in found)
    return found


def reference(lengths: list[int], pack_length: int, window: int) -> list[Entry]:
    """The rule of csrc/curriculum/packing.h, searched from the start for every piece."""
    pieces = [
        (document, first, min(pack_length, length - first))
        for document, length in enumerate(lengths)
        for first in range(0, length, pack_length)
    ]
    offsets = np.cumsum([0, *(tokens for *_, tokens in pieces)]).tolist()
    left, packed = list(range(len(pieces))), []
    while left:
        waiting = [number for number in left if offsets[number] < offsets[left[0]] + window * pack_length]
        chosen, room = [waiting[0]], pack_length - pieces[waiting[0]][2]
        while fitting := [number for number in waiting if number not in chosen and pieces[number][2] <= room]:
            chosen.append(max(fitting, key=lambda number: (pieces[number][2], -number)))
            room -= pieces[chosen[-1]][2]
        packed += [pieces[number] for number in sorted(chosen)] + ([(PADDING, 0, room)] if room else [])
        left = [number for number in left if number not in chosen]
    return packed


def best_fit_decreasing(lengths: np.ndarray, pack_length: int) -> int:
    """Packs that offline best fit decreasing needs."""
    rests = lengths % pack_length
    rooms = np.zeros(pack_length + 1, np.int64)
    packs = int((lengths // pack_length).sum())
    for rest in np.sort(rests[rests > 0])[::-1].tolist():
        fitting = np.flatnonzero(rooms[rest:])
        room = rest + int(fitting[0]) if len(fitting) else pack_length
        packs += not len(fitting)
        rooms[room] -= bool(len(fitting))
        rooms[room - rest] += 1
    return packs


lengths_lists = st.lists(st.integers(0, 40) | st.sampled_from([0, 1, 8, 16, 100]), max_size=60)


@given(lengths_lists, st.integers(1, 17), st.integers(1, 12), st.data())
def test_packs_equal_the_slow_reference(lengths, pack_length, window, data):
    cuts = data.draw(st.lists(st.integers(0, len(lengths)), max_size=3).map(sorted))
    assert pack(lengths, pack_length, window, tuple(cuts)) == reference(lengths, pack_length, window)


@given(lengths_lists, st.sampled_from([1, 2, 7, 16, 63, 64, 65, 4095, 4097]), st.integers(1, 12))
def test_every_token_once_and_every_pack_full(lengths, pack_length, window):
    found = pack(lengths, pack_length, window)
    ends = np.cumsum([tokens for *_, tokens in found])
    assert set(range(pack_length, int(ends[-1]) + 1 if found else 0, pack_length)) <= set(ends.tolist())
    documents = sorted(piece for piece in found if piece[0] != PADDING)
    covered = [(document, first + at) for document, first, tokens in documents for at in range(tokens)]
    assert covered == [(document, at) for document, length in enumerate(lengths) for at in range(length)]
    # Padding only ends a pack.
    assert all(end % pack_length == 0 for (entry, *_), end in zip(found, ends, strict=True) if entry == PADDING)


@given(lengths_lists, st.integers(1, 17), st.integers(1, 6))
def test_no_piece_moves_further_than_the_window(lengths, pack_length, window):
    starts = np.cumsum([0, *lengths])
    offsets = [starts[entry] + first for entry, first, _ in pack(lengths, pack_length, window) if entry != PADDING]
    latest_before = np.maximum.accumulate(offsets) if offsets else []
    assert all(latest - own < window * pack_length for latest, own in zip(latest_before, offsets, strict=True))


@pytest.mark.parametrize("pack_length", [512, 2048])
@pytest.mark.parametrize("mean", [300, 1500, 6000])
def test_padding_is_close_to_that_without_any_order(pack_length, mean):
    lengths = np.random.default_rng(mean).lognormal(np.log(mean) - 0.5, 1, 20_000).astype(np.int32) + 1
    packer = _curriculum.Packer(pack_length, 1024)
    packer.add(np.arange(len(lengths), dtype=np.uint64), lengths)
    packer.finish()
    fewest = max(best_fit_decreasing(lengths, pack_length), -(-int(lengths.sum()) // pack_length))
    assert packer.packs >= -(-int(lengths.sum()) // pack_length)
    assert packer.packs <= 1.006 * fewest + 1


def test_refuses():
    with pytest.raises(ValueError, match="packs of 0 tokens"):
        _curriculum.Packer(0, 1)
    with pytest.raises(ValueError, match="a window of 0 packs"):
        _curriculum.Packer(1, 0)
    with pytest.raises(ValueError, match="a document of -1 tokens"):
        _curriculum.Packer(4, 1).add(np.zeros(1, np.uint64), np.array([-1], np.int32))
    with pytest.raises(ValueError, match="2 lengths for 1 entries"):
        _curriculum.Packer(4, 1).add(np.zeros(1, np.uint64), np.zeros(2, np.int32))
