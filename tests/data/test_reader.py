"""The C++ reader against a slow one, on phases of every kind; and against damage at every place."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import shutil
import struct
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.phase_files import CODES, PADDING, Entry, read_slowly, write_pair, write_phase

VOCAB = 120
CORPORA = st.lists(
    st.tuples(st.sampled_from(sorted(CODES)), st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=7), max_size=6)),
    min_size=1,
    max_size=4,
)


@st.composite
def phase_entries(draw, corpora: list[list[list[int]]]) -> tuple[list[Entry], bool]:
    """Entries of one phase with at least one token, whole sequences or pieces with padding between them."""
    packed = draw(st.booleans())
    rows = [(dataset, row) for dataset, sequences in enumerate(corpora) for row in range(len(sequences))]
    entries = []
    for dataset, row in draw(st.lists(st.sampled_from(rows), max_size=30)) if rows else []:
        length = len(corpora[dataset][row])
        first = draw(st.integers(0, length)) if packed else 0
        entries.append(Entry(dataset, row, first, draw(st.integers(0, length - first)) if packed else length))
        if packed and draw(st.booleans()):
            entries.append(Entry(PADDING, draw(st.integers(0, 9)), 0, draw(st.integers(0, 5))))
    return entries, packed


@settings(max_examples=150)
@given(st.data())
def test_any_phases_read_as_one_entry_after_another(data):
    drawn = data.draw(CORPORA)
    corpora = [sequences for _, sequences in drawn]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prefixes = {}
        for number, (code, sequences) in enumerate(drawn):
            order = data.draw(st.permutations(range(len(sequences))))
            prefixes[str(number)] = write_pair(root / f"corpus{number}", sequences, code, order)
        folders, tokens, marks = [], [], []
        for number in range(data.draw(st.integers(1, 3))):
            entries, packed = data.draw(phase_entries(corpora))
            stride = data.draw(st.sampled_from([1, 2, 3, 7, 1024]))
            folders.append(write_phase(root / f"phase{number}", prefixes, entries, stride=stride, packed=packed))
            more = read_slowly(corpora, entries)
            tokens += more[0]
            marks += more[1]
        stream = TokenStream(folders, VOCAB, check=data.draw(st.sampled_from([None, (0, 1), (1, 2)])))
        assert stream.tokens == len(tokens)
        count = data.draw(st.integers(0, len(tokens)))
        positions = data.draw(st.lists(st.integers(0, len(tokens) - count), min_size=1, max_size=5))
        found, found_marks = stream.read_batch(positions, count, starts=True)
        assert found.tolist() == [tokens[at : at + count] for at in positions]
        assert found_marks.tolist() == [marks[at : at + count] for at in positions]
        assert stream.read_batch(positions, count)[1] is None
        assert stream.read(0, len(tokens)).tolist() == tokens


SEQUENCES = [[[1] * 9, [2, 3], [], [4] * 30], [[5, 6, 7]] * 20]
ENTRIES = [Entry(0, 0, 0, 9), Entry(1, 4, 0, 3), Entry(0, 3, 0, 30), Entry(0, 2, 0, 0), Entry(1, 19, 0, 3)] * 40
PIECES = [Entry(0, 0, 2, 7), Entry(PADDING, 0, 0, 4), Entry(0, 3, 5, 20), Entry(1, 1, 0, 3)] * 40


@pytest.fixture(scope="module", params=["whole", "packed"])
def original(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("original")
    prefixes = {name: write_pair(root / name, SEQUENCES[i], 8) for i, name in enumerate(("code", "wiki"))}
    packed = request.param == "packed"
    write_phase(root / "phase", prefixes, PIECES if packed else ENTRIES, stride=16, packed=packed)
    return root


@pytest.fixture
def phase(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, over the same corpora."""
    shutil.copytree(original / "phase", tmp_path / "phase")
    return tmp_path / "phase"


def whole(folder: Path, **settings) -> list[int]:
    stream = TokenStream([folder], VOCAB, **settings)
    return stream.read(0, stream.tokens).tolist()


def phase_file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.bin"))


def test_a_flipped_bit_is_refused_by_name_at_the_start_and_when_read(phase: Path):
    random = np.random.default_rng(5)
    for name in phase_file_names(phase):
        path = phase / name
        raw = path.read_bytes()
        for at in random.integers(0, len(raw), 60).tolist():
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << int(random.integers(8))]) + raw[at + 1 :])
            with pytest.raises(UserError, match=rf"{phase}/.*{name}"):
                TokenStream([phase], VOCAB)
            # Whoever did not check it at the start does not train on it either.
            with pytest.raises(UserError, match=str(phase)):
                whole(phase, check=None)
        path.write_bytes(raw)
    assert whole(phase)


def test_every_flipped_block_is_found_by_the_rank_whose_share_it_is(phase: Path):
    raw = (phase / "order.bin").read_bytes()
    blocks = -(-len(raw) // 8 // 16)
    for block in range(blocks):
        at = block * 16 * 8
        (phase / "order.bin").write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        refused = []
        for part in range(4):
            try:
                Phase(phase, check=(part, 4))
            except UserError as error:
                assert "order.bin" in str(error)
                refused.append(part)
        assert refused == [next(part for part in range(4) if block < blocks * (part + 1) // 4)]


def test_a_truncated_or_longer_file_is_refused_by_name_without_any_check(phase: Path):
    random = np.random.default_rng(6)
    for name in phase_file_names(phase):
        path = phase / name
        raw = path.read_bytes()
        for size in [0, len(raw) - 1, len(raw) + 8, *random.integers(0, len(raw), 10).tolist()]:
            path.write_bytes((raw + bytes(8))[:size])
            with pytest.raises(UserError, match=f"{path}: (truncated|too long)"):
                Phase(phase, check=None)
        path.unlink()
        with pytest.raises(UserError, match=f"{path}: cannot be read"):
            Phase(phase, check=None)
        path.write_bytes(raw)


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_a_changed_corpus_is_refused_by_name_on_every_rank(original: Path, tmp_path: Path, suffix: str):
    prefixes = {name: write_pair(tmp_path / name, SEQUENCES[i], 8) for i, name in enumerate(("code", "wiki"))}
    folder = write_phase(tmp_path / "phase", prefixes, ENTRIES)
    path = tmp_path / f"wiki{suffix}"
    raw = path.read_bytes()
    for at in range(60, len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(UserError, match=r"corpus 'wiki'.*phase|phase: corpus 'wiki' .* changed since"):
            Phase(folder, check=None)


def test_an_index_that_changes_under_a_run_is_refused_when_it_is_read(tmp_path: Path):
    """Lengths are compared with tokens.bin, and the place of a sequence with the size of its `.bin`."""
    prefix = write_pair(tmp_path / "code", SEQUENCES[0])
    entries = [entry for entry in ENTRIES if entry.dataset == 0]
    folder = write_phase(tmp_path / "phase", {"code": prefix}, entries)
    damages = {
        "length": (34, struct.pack("<i", 8), "tokens.bin: entries 0 to 120 of order.bin hold"),
        "negative": (34, struct.pack("<i", -8), "code.idx: sequence 0 has length -8"),
        "pointer": (34 + 16, struct.pack("<q", 2**40), "code.bin: truncated or of another corpus"),
        "odd pointer": (34 + 16, struct.pack("<q", 3), "code.idx: sequence 0 has length 9 and pointer 3"),
        "negative pointer": (34 + 16, struct.pack("<q", -2), "pointer -2, which is impossible"),
    }
    for offset, raw, message in damages.values():
        stream = TokenStream([folder], VOCAB)
        with open(f"{prefix}.idx", "r+b") as file:
            file.seek(offset)
            kept = file.read(len(raw))
            file.seek(offset)
            file.write(raw)
            file.flush()
            with pytest.raises(UserError, match=message):
                stream.read(0, stream.tokens)
            file.seek(offset)
            file.write(kept)


def test_a_piece_beyond_its_sequence_is_refused(tmp_path: Path):
    prefixes = {"code": write_pair(tmp_path / "code", SEQUENCES[0])}
    for piece in (Entry(0, 1, 1, 2), Entry(0, 1, 3, 1), Entry(0, 2, 0, 1), Entry(0, 1, 2**32 - 1, 2**20)):
        folder = write_phase(tmp_path / f"phase{piece.first}{piece.tokens}", prefixes, [piece], packed=True)
        with pytest.raises(UserError, match=rf"code\.idx: sequence {piece.sequence} has \d tokens, but token"):
            whole(folder)


def test_an_order_that_was_built_wrong_is_refused(tmp_path: Path):
    """Its checksums hold."""
    prefixes = {"code": write_pair(tmp_path / "code", SEQUENCES[0])}
    for at, entry in enumerate((Entry(0, 4, 0, 3), Entry(1, 0, 0, 3), Entry(PADDING, 0, 0, 3))):
        folder = write_phase(tmp_path / f"phase{at}", prefixes, [Entry(0, 0, 0, 9), entry], packed=False)
        with pytest.raises(UserError, match=r"order\.bin: damaged at entry 1: it names sequence"):
            whole(folder)


@pytest.mark.parametrize("code", sorted(CODES))
def test_ids_outside_the_vocabulary_in_every_type(tmp_path: Path, code: int):
    dtype = np.dtype(CODES[code])
    largest = int(np.iinfo(dtype).max)
    wrong = [VOCAB, largest] + ([-1, int(np.iinfo(dtype).min)] if dtype.kind == "i" else [])
    for number, token in enumerate(wrong):
        prefix = write_pair(tmp_path / f"corpus{number}", [[0], [0, VOCAB - 1, token, 1]], code)
        entries = [Entry(0, 0, 0, 1), Entry(0, 1, 0, 4)]
        stream = TokenStream([write_phase(tmp_path / f"phase{number}", {"web": prefix}, entries)], VOCAB)
        assert stream.read(0, 3).tolist() == [0, 0, VOCAB - 1]
        message = rf"corpus{number}: sequence 1 holds token id {token}, but the model's vocab_size is {VOCAB}"
        with pytest.raises(UserError, match=message):
            stream.read(0, 4)
    prefix = write_pair(tmp_path / "fits", [[largest, 0]], code)
    folder = write_phase(tmp_path / "fitting", {"web": prefix}, [Entry(0, 0, 0, 2)])
    assert TokenStream([folder], largest + 1).read(0, 2).tolist() == [largest, 0]


@pytest.fixture(scope="module")
def two_phases(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("two")
    random = np.random.default_rng(7)
    sequences = [random.integers(0, VOCAB, length).tolist() for length in random.integers(0, 60, 500)]
    prefixes = {"web": write_pair(root / "web", sequences, 4)}
    folders = []
    for name, stride in (("first", 32), ("second", 64)):
        rows = random.integers(0, 500, 700).tolist()
        entries = [Entry(0, row, 0, len(sequences[row])) for row in rows]
        folders.append(write_phase(root / name, prefixes, entries, stride=stride))
    return folders


def test_threads_read_the_same(two_phases: list[Path]):
    stream = TokenStream(two_phases, VOCAB, check=None)
    expected = TokenStream(two_phases, VOCAB).read(0, stream.tokens)
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(300):
            positions = random.integers(0, stream.tokens - 100, 8)
            for position, tokens in zip(positions, stream.read_batch(positions, 100)[0], strict=True):
                if not np.array_equal(tokens, expected[position : position + 100]):
                    wrong.append(int(position))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(two_phases: list[Path], method: str):
    stream = TokenStream(two_phases, VOCAB)
    expected = stream.read(0, stream.tokens)
    positions = [0, 5000, int(stream.boundaries[1]) - 50, stream.tokens - 100]
    with multiprocessing.get_context(method).Pool(2) as pool:
        parts = pool.starmap(stream.read, [(position, 100) for position in positions])
    assert all(np.array_equal(part, expected[at : at + 100]) for part, at in zip(parts, positions, strict=True))


def test_a_pickled_stream_is_its_paths(two_phases: list[Path]):
    raw = pickle.dumps(TokenStream(two_phases, VOCAB))
    assert len(raw) < 1000
    assert pickle.loads(raw).read(3, 9).tolist() == TokenStream(two_phases, VOCAB).read(3, 9).tolist()


def test_what_is_read_outlives_the_stream(two_phases: list[Path]):
    """The maps belong to the reader; nothing else has to stay."""
    reader = TokenStream(two_phases, VOCAB)._reader
    expected = TokenStream(two_phases, VOCAB).read(100, 500)
    assert np.array_equal(reader.read(np.array([100]), 500, False)[0][0], expected)


def test_new_phases_where_old_ones_lay_are_not_mixed_up(two_phases: list[Path]):
    """A thread remembers its last block; a phase that is gone must not be found in it."""
    expected = [TokenStream([folder], VOCAB).read(0, 200) for folder in two_phases]
    for number in itertools.islice(itertools.cycle([0, 1]), 40):
        assert np.array_equal(TokenStream([two_phases[number]], VOCAB, check=None).read(0, 200), expected[number])


@pytest.mark.parametrize("positions", [[-1], [0, 10**9], [2**63 - 1]])
def test_positions_outside_are_refused(two_phases: list[Path], positions: list[int]):
    stream = TokenStream(two_phases, VOCAB)
    with pytest.raises(UserError, match=rf"\[{positions[-1]}, {positions[-1] + 5}\) was asked for"):
        stream.read_batch(positions, 5)
    assert stream.read_batch([], 5)[0].shape == (0, 5)
