"""Tokens a second of `kaiyuan-data preprocess` against a Megatron-style pipeline, on the same files, in one run.

    python -m benchmarks.qwen_vocabulary runs/qwen
    python -m benchmarks.preprocess --tokenizer runs/qwen/tokenizer.json --input english.jsonl chinese.jsonl code.jsonl

The peer is what Megatron's `preprocess_data.py` does, from the interfaces of the libraries: a pool of processes that
parse lines and encode each text with Hugging Face tokenizers, and one process that gives the documents to
megatron.core's `IndexedDatasetBuilder`. Both run as commands of their own, so both times include Python's start and
loading the tokenizer; ours also includes the proof of the engine, and writing metadata, checksums and a manifest.
Seconds are wall time; CPU seconds are those of all processes, and matter where other work runs on the machine.
The `.bin` and `.idx` of both must be equal.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_kaiyuan.data.indexed import IndexedCorpus

# Lines that a worker of the peer takes at a time, as in Megatron's tool.
CHUNK = 32


class Run(NamedTuple):
    """How long a pipeline took, and the corpus it wrote."""

    name: str
    seconds: float
    cpu_seconds: float
    prefix: Path

    def report(self) -> str:
        corpus = IndexedCorpus(self.prefix)
        return (
            f"{self.name:24}{len(corpus):>10,} documents {corpus.num_tokens:>12,} tokens "
            f"{self.seconds:7.2f} s {corpus.num_tokens / self.seconds / 1e6:7.3f} M tokens/s "
            f"{self.cpu_seconds:7.2f} CPU s {corpus.num_tokens / self.cpu_seconds / 1e6:7.3f} M tokens/CPU s"
        )


def measure(name: str, command: list[str], prefix: Path) -> Run:
    """Run a command and count its time and that of all its processes; its output is shown when it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    for line in done.stdout.splitlines():
        if line.startswith("engine"):
            print(f"  {line}")
    return Run(name, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, prefix)


def compare(title: str, inputs: list[Path], arguments: argparse.Namespace, folder: Path) -> None:
    """Both pipelines over the inputs, their speeds and the comparison of what they wrote."""
    size = sum(path.stat().st_size for path in inputs)
    print(f"{title}: {size / 1e6:.1f} MB of JSON lines", flush=True)
    common = ["--workers", str(arguments.workers), "--input", *map(str, inputs)]
    command = ["-m", "data_tools.cli", "preprocess", "--output-prefix", str(folder / "ours")]
    command += ["--tokenizer-model", str(arguments.tokenizer), "--tokenizer-engine", arguments.tokenizer_engine]
    ours = measure("kaiyuan-data preprocess", [*command, *common], folder / "ours_text_document")
    print(ours.report(), flush=True)
    peer_prefix = folder / "peer_text_document"
    command = ["-m", "benchmarks.preprocess", "--peer", str(peer_prefix), "--tokenizer", str(arguments.tokenizer)]
    peer = measure("Megatron-style pipeline", [*command, *common], peer_prefix)
    print(peer.report())
    equal = all(
        filecmp.cmp(f"{ours.prefix}{suffix}", f"{peer.prefix}{suffix}", shallow=False) for suffix in (".bin", ".idx")
    )
    print(
        f"{title}: {peer.seconds / ours.seconds:.1f} times as fast, "
        f"{peer.cpu_seconds / ours.cpu_seconds:.1f} times by CPU seconds; "
        f".bin and .idx are {'identical' if equal else 'DIFFERENT'}",
        flush=True,
    )
    if not equal:
        raise SystemExit(1)


def peer_main(arguments: argparse.Namespace) -> None:
    """The Megatron-style pipeline."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    from data_tools.tokenizers.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(arguments.tokenizer, engine="reference")
    builder = IndexedDatasetBuilder(f"{arguments.peer}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    start = (arguments.tokenizer, tokenizer.eod_id)
    with multiprocessing.Pool(arguments.workers, _start_peer_worker, start) as pool:
        for ids in pool.imap(_encode_line, _lines(arguments.input), CHUNK):
            builder.add_document(ids, [len(ids)] if ids else [])
    builder.finalize(f"{arguments.peer}.idx")


def _lines(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        with open(path, encoding="utf-8") as file:
            yield from file


_worker: tuple[Any, int]


def _start_peer_worker(tokenizer: Path, eod_id: int) -> None:
    global _worker
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    library = Tokenizer.from_file(str(tokenizer))
    library.encode_special_tokens = True
    _worker = library, eod_id


def _encode_line(line: str) -> list[int]:
    library, eod_id = _worker
    ids: list[int] = library.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return [*ids, eod_id] if ids else ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="JSON lines files with a field `text`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokenizer-engine", default="auto")
    parser.add_argument("--each", action="store_true", help="measure each file by itself too")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer_main(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.input if arguments.each else []:
            compare(path.name, [path], arguments, Path(folder))
        compare("all files", arguments.input, arguments, Path(folder))


if __name__ == "__main__":
    main()
