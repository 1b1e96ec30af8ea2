"""A phase of 2.2e9 documents, in sparse files: opening, random access and checks where 32 bits have long ended.

Nearly every entry of the order is sequence 0, whose bytes are zeros that take no room. Some blocks name other
sequences, up to the last one. Cumulative tokens and checksums are written for all blocks, so that all of it is valid.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_kaiyuan.data.indexed import HEADER, MAGIC, IndexedCorpus
from megatron_kaiyuan.data.phase import STRIDE, Phase
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, write_sealed_json
from tests.helpers.files.phase_files import block_check

DOCUMENTS, VOCAB = 2_200_000_000, 50_000
FIRST_LENGTH, LENGTH = 700, 40
BLOCKS = -(-DOCUMENTS // STRIDE)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> None:
    """A file of zeros with some bytes at some offsets."""
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, raw in parts.items():
            file.seek(offset)
            file.write(raw)


def write_corpus(prefix: Path, named: list[int], tokens: np.ndarray) -> None:
    """Sequence 0 holds the first tokens; each named one LENGTH tokens from a place that follows from its number."""
    pointers_at, documents_at = HEADER.size + 4 * DOCUMENTS, HEADER.size + 12 * DOCUMENTS
    parts = {0: HEADER.pack(MAGIC, 1, 8, DOCUMENTS, DOCUMENTS + 1), HEADER.size: struct.pack("<i", FIRST_LENGTH)}
    for row in named:
        parts[HEADER.size + 4 * row] = struct.pack("<i", LENGTH)
        parts[pointers_at + 8 * row] = struct.pack("<q", 2 * place(row))
    parts[documents_at + 8 * DOCUMENTS] = struct.pack("<q", DOCUMENTS)
    sparse(Path(f"{prefix}.idx"), documents_at + 8 * (DOCUMENTS + 1), parts)
    tokens.astype("<u2").tofile(f"{prefix}.bin")


def place(row: int) -> int:
    return 1 + row % 5000


def checks_of_zeros() -> np.ndarray:
    """The checksum of every block of zeros, all blocks at once."""
    words = mix(np.arange(BLOCKS, dtype=np.uint64))
    for at in range(STRIDE):
        rows = slice(None) if at < DOCUMENTS - (BLOCKS - 1) * STRIDE else slice(BLOCKS - 1)
        words[rows] = mix(words[rows])
    return words


def mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, dict[int, list[int]], np.ndarray]:
    """The phase, the sequences of the blocks that name others than 0, and the tokens of the corpus."""
    root = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(1)
    tokens = random.integers(0, VOCAB, 10_000)
    blocks = [0, *random.integers(1, BLOCKS - 1, 20).tolist(), BLOCKS - 2]
    named = {block: random.integers(1, DOCUMENTS - 1, STRIDE).tolist() for block in blocks}
    named[blocks[-1]][-1] = DOCUMENTS - 1
    write_corpus(root / "corpus", [row for rows in named.values() for row in rows], tokens)
    folder = root / "phase"
    folder.mkdir()
    entries = struct.Struct(f"<{STRIDE}Q")
    sparse(folder / "order.bin", 8 * DOCUMENTS, {8 * STRIDE * at: entries.pack(*named[at]) for at in named})
    sizes = np.full(BLOCKS, STRIDE * FIRST_LENGTH, np.int64)
    sizes[-1] = (DOCUMENTS - (BLOCKS - 1) * STRIDE) * FIRST_LENGTH
    checks = checks_of_zeros()
    for block, rows in named.items():
        sizes[block] = STRIDE * LENGTH
        checks[block] = block_check(block, rows)
    np.concatenate([[0], np.cumsum(sizes)]).astype("<u8").tofile(folder / "tokens.bin")
    checks.astype("<u8").tofile(folder / "checks.bin")
    write_manifest(folder, int(sizes.sum()))
    return folder, named, tokens


def write_manifest(folder: Path, tokens: int) -> None:
    corpus = IndexedCorpus(folder.parent / "corpus", check=None)
    entry = {
        "name": "all",
        "path": "../corpus",
        "fingerprint": f"xxh3:not read here+{corpus.token_bytes.size}",
        "sample": corpus.sample_fingerprint(),
        "sequences": DOCUMENTS,
        "documents": DOCUMENTS,
        "tokens": tokens,
        "max_token_id": VOCAB - 1,
    }
    unread = f"xxh3:{0:032x}"
    files = {
        name: {"bytes": (folder / name).stat().st_size, "checksum": unread}
        for name in ("order.bin", "tokens.bin", "checks.bin")
    }
    for name in ("tokens.bin", "checks.bin"):
        files[name]["checksum"] = checksum(folder / name)
    manifest = {"format": "kaiyuan-phase", "version": 2, "name": "large", "documents": DOCUMENTS, "tokens": tokens}
    manifest |= {"order": "shuffle", "stride": STRIDE, "packing": None, "corpora": [entry], "files": files}
    write_sealed_json(folder / "manifest.json", manifest)


def test_it_opens_in_under_a_second_and_reads_anywhere(large, capsys):
    folder, named, tokens = large
    opening = []
    for _ in range(3):
        began = time.perf_counter()
        stream = TokenStream([folder], VOCAB, check=None)
        opening.append(time.perf_counter() - began)
    assert min(opening) < 1
    before = np.fromfile(folder / "tokens.bin", "<u8").astype(np.int64)
    for block, rows in named.items():
        expected = np.concatenate([tokens[place(row) : place(row) + LENGTH] for row in rows])
        start, stop = (int(offset) for offset in before[block : block + 2])
        assert np.array_equal(stream.read(start, stop - start), expected)
        assert np.array_equal(stream.read(stop, FIRST_LENGTH), tokens[:FIRST_LENGTH])
    positions = np.random.default_rng(2).integers(0, stream.tokens - 5000, 20_000)
    took = []
    for _ in range(2):
        began = time.perf_counter()
        for position in positions:
            stream.read_batch([position], 4097)
        took.append((time.perf_counter() - began) / len(positions))
    with capsys.disabled():
        apparent = sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file())
        used = sum(512 * path.stat().st_blocks for path in folder.parent.rglob("*") if path.is_file())
        print(
            f"\n{DOCUMENTS:,} documents, {stream.tokens:,} tokens, "
            f"{apparent / 1e9:.0f} GB ({used / 1e6:.0f} MB on disk): "
            f"opened in {min(opening) * 1e3:.1f} ms; 4,097 tokens at a random place in {took[0] * 1e6:.1f} us, "
            f"{took[1] * 1e6:.1f} us the second time"
        )


def test_a_rank_of_a_large_job_checks_its_share_in_no_time(large):
    folder, _, _ = large
    began = time.perf_counter()
    Phase(folder, check=(511, 1024))
    assert time.perf_counter() - began < 5


def test_every_block_is_checked_and_a_flipped_bit_is_found(large):
    folder, _, _ = large
    Phase(folder, check=None).reader.check(0, BLOCKS, False)
    order = folder / "order.bin"
    at = 8 * STRIDE * (BLOCKS // 2) + 77
    with open(order, "r+b") as file:
        os.pwrite(file.fileno(), b"\1", at)
        try:
            with pytest.raises(UserError, match=r"order\.bin: damaged between entries"):
                Phase(folder, check=(512, 1024))
            stream = TokenStream([folder], VOCAB, check=None)
            before = int(np.fromfile(folder / "tokens.bin", "<u8")[BLOCKS // 2])
            with pytest.raises(UserError, match=r"order\.bin: damaged between entries"):
                stream.read(before, 1)
        finally:
            os.pwrite(file.fileno(), b"\0", at)
