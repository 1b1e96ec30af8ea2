"""Writing and joining `.bin/.idx` pairs against Megatron Core's IndexedDatasetBuilder, in one run, to the same bytes.

    python -m benchmarks.index --documents 20000000 --threads 2

Each side is a process of its own and gets the same documents, about 8 tokens long, from flat arrays, a batch at a time:
Megatron's builder one NumPy slice a document, which is the fastest way into it, ours a batch. Making the batch is not
timed. `.idx alone` leaves the tokens out and fills the builder's lists in bulk: what is compared is the index and
nothing else. Peak memory is what a process needs beyond what it held before the first document (Linux's VmHWM).

`merge` joins equal parts: Megatron's add_index and finalize; ours the check of each part, the index and the tokens. The
third line is all that `kaiyuan-data merge` does besides: metadata, checksums of everything read, flushing to the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 100_000
TOKENIZER = {"path": "none", "fingerprint": "xxh3:0", "vocab_size": 50_000, "eod_id": 0}


def batches(first: int, last: int) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.int32]]]:
    """Tokens and lengths of the documents [first, last); one in fifty is empty."""
    for at in range(first, last, BATCH):
        generator = np.random.default_rng(at)
        lengths = generator.integers(1, 16, min(BATCH, last - at), dtype=np.int32)
        lengths[generator.random(len(lengths)) < 0.02] = 0
        yield generator.integers(0, TOKENIZER["vocab_size"], lengths.sum(), dtype=np.uint16), lengths


def write_with_megatron(prefix: str, first: int, last: int) -> float:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    measure.begin()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    seconds = 0.0
    for tokens, lengths in batches(first, last):
        began = time.perf_counter()
        start = 0
        for length in lengths.tolist():
            # An empty document has no sequence, as in Megatron's preprocess_data.py.
            builder.add_document(tokens[start : start + length], [length] if length else [])
            start += length
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    builder.finalize(f"{prefix}.idx")
    return seconds + time.perf_counter() - began


def write_ours(prefix: str, first: int, last: int, threads: int) -> float:
    from data_tools import _index

    measure.begin()
    seconds = 0.0
    with open(f"{prefix}.bin", "wb") as file:
        writer = _index.IndexWriter(os.fsencode(f"{prefix}.idx"), 8)
        for tokens, lengths in batches(first, last):
            began = time.perf_counter()
            file.write(memoryview(tokens))
            writer.add(lengths)
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        writer.finish(threads)
    return seconds + time.perf_counter() - began


def index_with_megatron(prefix: str, first: int, last: int) -> float:
    """Without tokens: the builder's lists filled in bulk, as its add_index does it, and its finalize."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    measure.begin()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    seconds = 0.0
    for _, lengths in batches(first, last):
        began = time.perf_counter()
        offset, kept = len(builder.sequence_lengths), lengths > 0
        builder.sequence_lengths.extend(lengths[kept].tolist())
        builder.document_indices.extend((offset + np.cumsum(kept)).tolist())
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    builder.finalize(f"{prefix}.idx")
    return seconds + time.perf_counter() - began


def index_ours(prefix: str, first: int, last: int, threads: int) -> float:
    from data_tools import _index

    measure.begin()
    writer = _index.IndexWriter(os.fsencode(f"{prefix}.idx"), 8)
    seconds = 0.0
    for _, lengths in batches(first, last):
        began = time.perf_counter()
        writer.add(lengths)
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    writer.finish(threads)
    return seconds + time.perf_counter() - began


def merge_with_megatron(prefix: str, parts: list[str]) -> float:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    measure.begin()
    began = time.perf_counter()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for part in parts:
        builder.add_index(part)
    builder.finalize(f"{prefix}.idx")
    return time.perf_counter() - began


def merge_ours(prefix: str, parts: list[str], threads: int) -> float:
    from data_tools import _index

    measure.begin()
    began = time.perf_counter()
    pairs = [(os.fsencode(f"{part}.idx"), os.path.getsize(f"{part}.bin")) for part in parts]
    for path, size in pairs:
        _index.check(path, size, threads)
    _index.merge(os.fsencode(f"{prefix}.idx"), pairs, threads)
    with open(f"{prefix}.bin", "wb") as output:
        for part in parts:
            with open(f"{part}.bin", "rb") as file:
                shutil.copyfileobj(file, output, 1 << 22)
    return time.perf_counter() - began


def merge_command(prefix: str, parts: list[str], threads: int) -> float:
    from data_tools.corpora.merge import merge_corpora

    measure.begin()
    began = time.perf_counter()
    merge_corpora([Path(part) for part in parts], Path(prefix), threads)
    return time.perf_counter() - began


def make_part(prefix: str, first: int, last: int) -> float:
    """A part with manifest and metadata."""
    from data_tools.corpora.corpus import CorpusWriter, Documents

    measure.begin()
    with CorpusWriter(Path(prefix), TOKENIZER) as writer:
        for tokens, lengths in batches(first, last):
            names = ["web"] * len(lengths)
            writer.add(Documents(tokens, lengths, lengths * 4, names, names))
    return 0.0


class PeakMemory:
    """Bytes that the process held at most since `begin`, beyond what it held then."""

    def begin(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._start = self._kilobytes("VmRSS")

    def bytes(self) -> int:
        return max(self._kilobytes("VmHWM") - self._start, 0) * 1024

    def _kilobytes(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


measure = PeakMemory()


def in_a_process(function: str, *arguments: Any) -> dict[str, float]:
    """Call a function of this module in a new process; seconds and peak bytes."""
    os.sync()  # what an earlier side has written is not to be flushed at the cost of the next
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.index", "--call", json.dumps([function, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def require_same(first: Path, second: Path, suffixes: Sequence[str] = (".bin", ".idx")) -> None:
    """End the benchmark when two pairs differ."""
    from megatron_kaiyuan.files import checksum

    for suffix in suffixes:
        if checksum(first.with_suffix(suffix)) != checksum(second.with_suffix(suffix)):
            raise SystemExit(f"{suffix}: the two sides differ")


def print_rate(name: str, documents: int, found: dict[str, float], reference: dict[str, float] | None = None) -> None:
    rate, memory = documents / found["seconds"] / 1e6, found["bytes"] / documents
    ratio = f", {reference['seconds'] / found['seconds']:.1f} times megatron-core" if reference else ""
    print(f"{name:<26} {rate:7.2f} M documents/s, peak {memory:6.2f} bytes a document{ratio}", flush=True)


def compare_writers(folder: Path, documents: int, threads: int) -> None:
    theirs = in_a_process("write_with_megatron", str(folder / "theirs"), 0, documents)
    print_rate("write, megatron-core", documents, theirs)
    ours = in_a_process("write_ours", str(folder / "ours"), 0, documents, threads)
    require_same(folder / "theirs", folder / "ours")
    print_rate(f"write, csrc, {threads} threads", documents, ours, theirs)


def compare_indexes(folder: Path, documents: int, threads: int) -> None:
    theirs = in_a_process("index_with_megatron", str(folder / "their_index"), 0, documents)
    print_rate(".idx alone, megatron-core", documents, theirs)
    ours = in_a_process("index_ours", str(folder / "our_index"), 0, documents, threads)
    require_same(folder / "their_index", folder / "our_index", [".idx"])
    print_rate(f".idx alone, csrc, {threads} threads", documents, ours, theirs)


def compare_mergers(folder: Path, documents: int, count: int, threads: int) -> None:
    parts = [str(folder / f"part{number}") for number in range(count)]
    # Batches are made from their first document, so parts are whole batches to give the same documents.
    steps = np.linspace(0, -(-documents // BATCH), count + 1).astype(int) * BATCH
    for part, first, last in zip(parts, steps, steps[1:], strict=False):
        in_a_process("make_part", part, int(first), min(int(last), documents))
    theirs = in_a_process("merge_with_megatron", str(folder / "theirs_merged"), parts)
    print_rate(f"merge {count}, megatron-core", documents, theirs)
    require_same(folder / "theirs", folder / "theirs_merged")
    ours = in_a_process("merge_ours", str(folder / "ours_merged"), parts, threads)
    require_same(folder / "theirs", folder / "ours_merged")
    print_rate(f"merge {count}, csrc, {threads} threads", documents, ours, theirs)
    whole = in_a_process("merge_command", str(folder / "joined"), parts, threads)
    require_same(folder / "theirs", folder / "joined")
    print_rate("kaiyuan-data merge", documents, whole, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000_000)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where the files go for a while; 70 bytes a document and copy")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call:
        function, *values = json.loads(arguments.call)
        seconds = globals()[function](*values)
        print(json.dumps({"seconds": seconds, "bytes": measure.bytes()}))
        return
    peers = f"megatron-core {version('megatron-core')}, numpy {np.__version__}"
    print(f"{arguments.documents:,} documents, {os.cpu_count()} cores, {peers}", flush=True)
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare_writers(Path(folder), arguments.documents, arguments.threads)
        compare_indexes(Path(folder), arguments.documents, arguments.threads)
        compare_mergers(Path(folder), arguments.documents, arguments.parts, arguments.threads)
    print("all pairs have the same bytes")


if __name__ == "__main__":
    main()
