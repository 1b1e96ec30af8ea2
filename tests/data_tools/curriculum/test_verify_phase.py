"""`kaiyuan-data verify` on phases: whatever was changed after they were built is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.curriculum.verify import is_phase, verify_phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, write_sealed_json
from tests.helpers.files.phase_files import PADDING, Entry, write_pair, write_phase
from tests.helpers.files.small_corpora import numbered_corpus
from tests.helpers.processes.command import Command

SEQUENCES = [[1] * 9, [2, 3], [], [4] * 5000, [5] * 5000, *[[6, 7]] * 8000]


def write(root: Path, packed: bool) -> Path:
    rows = np.random.default_rng(1).integers(0, len(SEQUENCES), 400).tolist()
    prefixes = {name: write_pair(root / name, SEQUENCES, 8) for name in ("code", "wiki")}
    entries = [Entry(row % 2, row, 0, len(SEQUENCES[row])) for row in rows]
    if packed:
        entries.append(Entry(PADDING, 0, 0, 100))
    return write_phase(root / "phase", prefixes, entries, stride=32, packed=packed)


@pytest.fixture(params=["whole", "packed"])
def phase(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path, request.param == "packed")


def flip(path: Path, at: int) -> bytes:
    raw = path.read_bytes()
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
    return raw


@pytest.mark.parametrize("threads", [1, 3])
def test_a_whole_phase_passes(phase: Path, threads: int) -> None:
    found = verify_phase(phase, threads=threads)
    assert (found.documents, found.tokens) == (400, verify_phase(phase, fast=True).tokens)


def test_a_flipped_bit_anywhere_is_named(phase: Path) -> None:
    random = np.random.default_rng(2)
    for path in sorted(phase.glob("*.bin")):
        for at in random.integers(0, path.stat().st_size, 20).tolist():
            raw = flip(path, at)
            with pytest.raises(UserError, match=str(path)):
                verify_phase(phase)
            path.write_bytes(raw)


@pytest.mark.parametrize("fast", [True, False])
def test_a_truncated_file_is_named(phase: Path, fast: bool) -> None:
    for path in sorted(phase.glob("*.bin")):
        raw = path.read_bytes()
        path.write_bytes(raw[:-8])
        with pytest.raises(UserError, match=f"{path}: truncated"):
            verify_phase(phase, fast)
        path.write_bytes(raw)


def test_an_index_that_changed_anywhere_is_named(phase: Path) -> None:
    """Also where no sample of it lies."""
    index = phase.parent / "wiki.idx"
    for at in np.random.default_rng(3).integers(34, index.stat().st_size, 20).tolist():
        raw = flip(index, at)
        with pytest.raises(UserError, match=r"corpus 'wiki'|wiki\.(idx|bin)"):
            verify_phase(phase)
        index.write_bytes(raw)


def test_an_order_of_other_lengths_is_found_behind_sound_checksums(phase: Path) -> None:
    path = phase / "tokens.bin"
    tokens = np.fromfile(path, "<u8")
    tokens[3] += 1
    tokens.tofile(path)
    manifest = json.loads((phase / "manifest.json").read_text())
    manifest["files"]["tokens.bin"]["checksum"] = checksum(path)
    write_sealed_json(phase / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"tokens\.bin: entries 64 to 96 of order\.bin hold"):
        verify_phase(phase)


def test_documents_must_add_up(phase: Path) -> None:
    manifest = json.loads((phase / "manifest.json").read_text())
    manifest["corpora"][0]["documents"] += 1
    write_sealed_json(phase / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"manifest\.json: says 400 documents in one place and 401 in another"):
        verify_phase(phase)


def test_the_command_takes_corpora_and_phases(command: Command, tmp_path: Path) -> None:
    folder = write(tmp_path, packed=False)
    prefix = numbered_corpus(tmp_path / "numbers", [3, 4], 0)
    assert is_phase(folder) and not is_phase(prefix)
    lines = command("verify", folder, prefix).stdout
    assert lines.startswith("verify: 1 corpus is whole, 2 sequences, 7 tokens; 1 phase is whole, 400 documents, ")
    as_json = json.loads(command("verify", folder, "--fast", "--json").stdout)
    assert (as_json["phases"], as_json["phase_documents"], as_json["corpora"]) == (1, 400, 0)
    flip(folder / "order.bin", 77)
    done = command("verify", folder)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "order.bin" in done.stderr
    assert command("verify", folder, "--fast").returncode == 0
