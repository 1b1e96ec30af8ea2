"""Windows at quantiles: `kaiyuan-data quantile` against NumPy's one sort and the released pipeline's way, in one run.

    python -m benchmarks.windows --documents 1e7
    python -m benchmarks.windows --documents 1e7 --spark            # pip install pyspark; a JVM

One corpus with two scores: one of different values, one of six values, as a classifier's whole grades are. Six windows
of the report (top 0, 15, 30, 45, 60, 75 %, each 2 % wide) are cut of each. The command gives phases on disk: it reads
index and sidecar, sorts once to count and once a window, and draws equal tokens of each. NumPy reads the same score and
lengths, sorts once (score, then hash) and writes the sequences of each window; both must agree in documents, tokens,
bounds and ends, and all that is in a phase must be in NumPy's window.

Spark does what the released pipeline does (arXiv 2512.07612): two nested filters by ratio with approxQuantile of
relative error 1e-3 and strict comparisons, on scores that it has cached; the windows' rows are written as Parquet. Its
session starts before its time begins.

Each side has a process of its own. Memory is what it holds at most beyond what it held before its work.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.curriculum import apart, resident
from data_tools.corpora.corpus import CorpusWriter, Documents
from data_tools.scores.quantiles import choice_seed, draws
from data_tools.windows.cut import WINDOWS, cut_windows
from data_tools.windows.options import WindowOptions
from data_tools.windows.targets import TOPS
from megatron_kaiyuan.data.indexed import idx_path, map_lengths
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.files import read_sealed_json

SEED, PIECE, NAME = 1234, 500_000, "web"
SCORES = ("different", "six")
WIDTH = 2  # hundredths
NEAR = [round(100 * float(top)) for top in TOPS]


# By score: documents, tokens, lowest, highest of each.
Windows = dict[str, list[tuple[int, int, float, float]]]


class Result(NamedTuple):
    """Of one side."""

    seconds: float
    peak_bytes: int
    windows: Windows


def write_corpus(prefix: Path, documents: int) -> None:
    """Documents of 1 to 9 tokens: what a window costs does not depend on their length."""
    draw = np.random.default_rng(0)
    tokenizer = {"path": "tokenizer.json", "fingerprint": "xxh3:0", "vocab_size": 1000, "eod_id": 0}
    with CorpusWriter(prefix, tokenizer, list(SCORES)) as writer:
        for first in range(0, documents, PIECE):
            size = min(PIECE, documents - first)
            lengths = draw.integers(1, 10, size)
            scores = {"different": draw.random(size), "six": draw.integers(0, 6, size).astype(float)}
            tokens = np.ones(lengths.sum(), np.int64)
            writer.add(Documents(tokens, lengths, lengths, ["test"] * size, ["file"] * size, scores))


def run_command(prefix: Path, output: Path, by: str, threads: int, memory: int | None) -> Result:
    """The command, once for each score."""
    windows: Windows = {}
    before, began = resident("VmRSS"), time.perf_counter()
    for score in SCORES:
        options = WindowOptions([score], by=by, samples=None, seed=SEED)
        cut_windows([f"{NAME}={prefix}"], options, output / score, threads, memory)
    seconds, peak = time.perf_counter() - began, resident("VmHWM") - before
    for score in SCORES:
        found = read_sealed_json(output / score / WINDOWS, "windows")["windows"]
        windows[score] = [(row["documents"], row["tokens"], row["lowest"], row["highest"]) for row in found]
    return Result(seconds, peak, windows)


def run_numpy(prefix: Path, output: Path, by: str) -> Result:
    """One sort of each score; the sequences of each window as a file."""
    windows: Windows = {}
    before, began = resident("VmRSS"), time.perf_counter()
    for score in SCORES:
        lengths = np.asarray(map_lengths(idx_path(prefix)))
        values = pq.read_table(metadata_path(prefix), columns=[score]).column(0).to_numpy()
        rows: NDArray[np.uint64] = np.arange(len(values), dtype=np.uint64)
        best_first = np.lexsort((draws(choice_seed(SEED, NAME), rows), values))[::-1]
        begin = np.cumsum(lengths[best_first]) - lengths[best_first] if by == "tokens" else None
        windows[score] = []
        for near in NEAR:
            first, last = (_place(bound, lengths, begin) for bound in (near, near + WIDTH))
            mine = best_first[first:last]
            mine.tofile(output / f"{score}-{near}")
            held = values[mine]
            windows[score].append((len(mine), int(lengths[mine].sum()), float(held[-1]), float(held[0])))
    return Result(time.perf_counter() - began, resident("VmHWM") - before, windows)


def _place(hundredths: int, lengths: NDArray[Any], begin: NDArray[np.int64] | None) -> int:
    if begin is None:
        return (hundredths * len(lengths) + 50) // 100
    return int(np.searchsorted(begin, -(-hundredths * int(lengths.sum()) // 100)))


def run_spark(prefix: Path, output: Path, threads: int) -> Result:
    """Two nested filters for each window, as the released pipeline has them."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    session = SparkSession.builder.master(f"local[{threads}]").config("spark.driver.memory", "8g").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    rows = session.read.parquet(os.fspath(metadata_path(prefix))).select("tokens", *SCORES).cache()
    rows.count()
    windows: Windows = {}
    began = time.perf_counter()
    for score in SCORES:
        windows[score] = []
        for near in NEAR:
            far = (near + WIDTH) / 100
            top = rows.filter(f.col(score) > rows.approxQuantile(score, [1 - far], 1e-3)[0])
            edge = top.approxQuantile(score, [WIDTH / 100 / far], 1e-3)
            window = top.filter(f.col(score) < edge[0]) if edge else top
            place = os.fspath(output / f"{score}-{near}")
            window.write.mode("overwrite").parquet(place)
            held = session.read.parquet(place)
            counted = held.agg(f.count("*"), f.sum("tokens"), f.min(score), f.max(score)).first()
            windows[score].append((counted[0], counted[1] or 0, counted[2], counted[3]))
    seconds = time.perf_counter() - began
    session.stop()
    return Result(seconds, 0, windows)


def check_phases(commanded: Path, numpy: Path, prefix: Path) -> None:
    """Raises SystemExit when a phase holds a document that is not in NumPy's window, or one twice."""
    for score in SCORES:
        for near, row in zip(NEAR, read_sealed_json(commanded / score / WINDOWS, "windows")["windows"], strict=True):
            mine = np.fromfile(commanded / score / row["phase"] / "order.bin", "<u8") & np.uint64(2**48 - 1)
            expected = np.fromfile(numpy / f"{score}-{near}", "<i8").astype(np.uint64)
            if len(np.unique(mine)) < len(mine) or not np.isin(mine, expected).all():
                raise SystemExit(f"{row['name']} of {score}: the phase holds other documents than NumPy's window")


def compare(prefix: Path, folder: Path, documents: int, threads: int) -> Iterator[str]:
    """A line for each way of counting, and each side."""
    for by in ("documents", "tokens"):
        numpy_output = folder / f"numpy-{by}"
        numpy_output.mkdir()
        numpy = apart(run_numpy, prefix, numpy_output, by)
        yield f"by {by}, numpy: {numpy.seconds:.1f} s, peak {numpy.peak_bytes / documents:.0f} bytes a document"
        # In the bound a spilled sort is of 33 MB: everything beyond comes from files.
        for number, (cores, memory) in enumerate(((threads, None), (1, 97 << 20))):
            output = folder / f"command-{by}-{number}"
            own = apart(run_command, prefix, output, by, cores, memory)
            if own.windows != numpy.windows:
                raise SystemExit(f"by {by}: the windows are not NumPy's: {own.windows} {numpy.windows}")
            check_phases(output, numpy_output, prefix)
            bound = f"{memory >> 20} MiB" if memory else "no bound"
            times, each = numpy.seconds / own.seconds, own.peak_bytes / documents
            yield (
                f"by {by}, quantile, {cores} threads, {bound}: {own.seconds:.1f} s, {times:.2f} times as fast as "
                f"numpy, peak {own.peak_bytes / 2**20:.0f} MiB ({each:.0f} bytes a document); the windows are numpy's"
            )


def compare_with_spark(prefix: Path, folder: Path, documents: int, threads: int) -> Iterator[str]:
    """Spark between two runs of the command."""
    before = apart(run_command, prefix, folder / "before", "documents", threads, None)
    spark = apart(run_spark, prefix, folder, threads)
    after = apart(run_command, prefix, folder / "after", "documents", threads, None)
    mean = (before.seconds + after.seconds) / 2
    yield (
        f"spark local[{threads}], approxQuantile 1e-3: {spark.seconds:.1f} s; quantile {before.seconds:.1f} and "
        f"{after.seconds:.1f} s: {spark.seconds / mean:.1f} times as fast"
    )
    wanted = documents * WIDTH / 100
    for score in SCORES:
        sizes = ", ".join(f"{row[0] / wanted:.3f}" for row in spark.windows[score])
        yield f"spark, {score} values: documents in each window / those asked for: {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, default=1e7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--spark", action="store_true", help="compare with the released pipeline's way")
    parser.add_argument("--folder", type=Path, help="where the corpus and the windows are written; default: temporary")
    arguments = parser.parse_args()
    documents = int(arguments.documents)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        prefix = folder / "web_text_document"
        write_corpus(prefix, documents)
        for line in compare(prefix, folder, documents, arguments.threads):
            print(line, flush=True)
        if arguments.spark:
            for line in compare_with_spark(prefix, folder, documents, arguments.threads):
                print(line, flush=True)


if __name__ == "__main__":
    main()
