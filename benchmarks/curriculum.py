"""Sort, repeat and interleave: the curriculum builder (csrc/) against NumPy and, if it is installed, Spark; in one run.

    python -m benchmarks.curriculum --documents 1e7 --datasets 19
    python -m benchmarks.curriculum --documents 1e8 --datasets 19 --spark-documents 1e7     # pip install pyspark; a JVM

NumPy makes the same three files, compared by their checksums: one sort for each dataset, AVX-512 where NumPy has it,
and one of all rows that makes use of the sorted runs in it. A second line is NumPy making the order alone, with ties as
they fall, which no one can repeat or read; it shows what the rest costs. The builder runs with one thread and with all,
and once more at a tenth of the memory: equal bytes or an error. Spark makes the order of datasets of the same sizes and
kinds from rows that it has cached, ties by a hash, and writes it as Parquet; once more with the running total of
tokens, which our files hold too. Its session is started before its time begins.

Each side has its data in memory and a process of its own. Memory is what the process holds at most beyond what it held
before: its peak resident set. The best of --rounds counts, since other work on the machine only ever slows a round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_tools._curriculum import Builder
from megatron_kaiyuan.data.phase import STRIDE
from megatron_kaiyuan.files import checksum

T = TypeVar("T")
CHUNK = 1 << 18
FILES = ("order.bin", "tokens.bin", "checks.bin")
# What the rows may take at most: the benchmark's own memory limits come from it.
BYTES_PER_DOCUMENT = 24


class Dataset(NamedTuple):
    lengths: NDArray[np.int32]
    scores: NDArray[np.float64] | None
    copies: int


class Case(NamedTuple):
    documents: int
    datasets: int


class Result(NamedTuple):
    seconds: float
    documents: int
    peak_bytes: int
    checksums: tuple[str, ...] = ()


def sizes(case: Case) -> list[int]:
    generator = np.random.default_rng(0)
    return generator.multinomial(case.documents, generator.dirichlet(np.full(case.datasets, 2.0))).tolist()


def random_datasets(case: Case) -> list[Dataset]:
    """Uneven sizes; a third of the datasets is unscored, every other of them twice, as the report has it; a third has
    distinct scores and a third a hundred levels."""
    generator = np.random.default_rng(0)
    made = []
    for number, size in enumerate(sizes(case)):
        lengths = generator.integers(1, 2000, size, dtype=np.int32)
        scores = [None, lambda n: generator.random(n), lambda n: generator.integers(0, 100, n) / 10][number % 3]
        made.append(Dataset(lengths, scores(size) if scores else None, 2 if number % 6 == 0 else 1))
    return made


def build(datasets: list[Dataset], folder: Path, threads: int, memory: int) -> int:
    """The files of one phase; returns its documents."""
    builder = Builder(os.fspath(folder), memory=memory, shuffle=False, threads=threads)
    for number, (lengths, scores, _) in enumerate(datasets):
        builder.begin(scored=scores is not None, choice_seed=number, order_seed=number, expected=len(lengths))
        for at in range(0, len(lengths), CHUNK):
            builder.add(at, lengths[at : at + CHUNK], None if scores is None else scores[at : at + CHUNK])
        if scores is not None:
            builder.keep(0, len(lengths))
    for number, dataset in enumerate(datasets):
        builder.repeat(number, dataset.copies)
    builder.interleave(os.fspath(folder))
    return sum(builder.count(number)[0] for number in range(len(datasets)))


def splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """csrc/common/hash.h for arrays."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draws(seed: int, purpose: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return splitmix(splitmix(splitmix(np.array([seed], np.uint64)) ^ np.uint64(purpose)) ^ rows)


def ranked_rows(number: int, dataset: Dataset, exact: bool) -> NDArray[np.uint64]:
    """copy << 48 | sequence in the dataset's order; purposes 0 and 3 draw a row and a tie of scores."""
    lengths, scores, copies = dataset
    rows = np.concatenate(
        [np.arange(copy << 48, (copy << 48) + len(lengths), dtype=np.uint64) for copy in range(copies)]
    )
    if scores is None:
        return rows[np.argsort(draws(number, 0, rows))] if exact else np.random.default_rng(number).permutation(rows)
    scores = np.tile(scores, copies) if copies > 1 else scores
    ranked = np.argsort(scores)
    ascending = scores[ranked]
    if exact and (ascending[1:] == ascending[:-1]).any():
        ranked = np.lexsort((draws(number, 3, rows), scores))
    return rows[ranked]


def numpy_order(datasets: list[Dataset], exact: bool) -> NDArray[np.uint64]:
    """Algorithm 1 as fast as NumPy does it. A stable sort finds the runs that the datasets are; ties come after it."""
    total = sum(len(dataset.lengths) * dataset.copies for dataset in datasets)
    positions, owners = np.empty(total), []
    rows: NDArray[np.uint64] = np.empty(total, np.uint64)
    at = 0
    for number, dataset in enumerate(datasets):
        own = ranked_rows(number, dataset, exact)
        rows[at : at + len(own)] = own
        positions[at : at + len(own)] = np.arange(1, len(own) + 1) / max(len(own), 1) * total
        owners.append(len(own))
        at += len(own)
    owner: NDArray[np.uint64] = np.repeat(np.arange(len(datasets), dtype=np.uint64), owners)
    order = np.argsort(positions, kind="stable")
    if exact:
        resolve_ties(order, positions, rows, owner)
    return (rows[order] & np.uint64((1 << 48) - 1)) | owner[order] << np.uint64(48)


def resolve_ties(
    order: NDArray[np.int64], positions: NDArray[np.float64], rows: NDArray[np.uint64], owner: NDArray[np.uint64]
) -> None:
    """Rows of equal R by their hash; purpose 2."""
    ascending = positions[order]
    same = np.concatenate([[False], ascending[1:] == ascending[:-1], [False]])
    places = np.flatnonzero(same[1:] | same[:-1])
    tied = order[places]
    hashes: NDArray[np.uint64] = np.empty(len(tied), np.uint64)
    for number in np.unique(owner[tied]):
        mine = owner[tied] == number
        hashes[mine] = splitmix(draws(int(number), 0, rows[tied[mine]]) ^ np.uint64(2))
    order[places] = tied[np.lexsort((hashes, positions[tied]))]


def numpy_files(datasets: list[Dataset], folder: Path) -> int:
    """order.bin, tokens.bin and checks.bin, as the builder writes them."""
    order = numpy_order(datasets, exact=True)
    order.tofile(folder / "order.bin")
    owner, sequences = order >> np.uint64(48), order & np.uint64((1 << 48) - 1)
    firsts = np.cumsum([0] + [len(dataset.lengths) for dataset in datasets])
    lengths = np.concatenate([dataset.lengths for dataset in datasets])
    ends = np.cumsum(lengths[firsts[owner.view(np.int64)] + sequences.view(np.int64)], dtype=np.int64)
    np.concatenate([[0], ends[STRIDE - 1 : -1 : STRIDE], ends[-1:]]).tofile(folder / "tokens.bin")
    whole = len(order) // STRIDE * STRIDE
    checks = splitmix(np.arange(-(-len(order) // STRIDE), dtype=np.uint64))
    columns = np.ascontiguousarray(order[:whole].reshape(-1, STRIDE).T)
    for words in columns:
        checks[: len(words)] = splitmix(checks[: len(words)] ^ words)
    for word in order[whole:]:
        checks[-1:] = splitmix(checks[-1:] ^ word)
    checks.tofile(folder / "checks.bin")
    return len(order)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10


def time_files(case: Case, rounds: int, write: Callable[[list[Dataset], Path], int]) -> Result:
    datasets = random_datasets(case)
    seconds = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            before, began = resident("VmRSS"), time.perf_counter()
            documents = write(datasets, Path(folder))
            seconds.append(time.perf_counter() - began)
            if number == 0:
                peak = resident("VmHWM") - before
                checksums = tuple(checksum(Path(folder) / name) for name in FILES)
    return Result(min(seconds), documents, peak, checksums)


def time_unordered_ties(case: Case, rounds: int) -> Result:
    datasets = random_datasets(case)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        documents = len(numpy_order(datasets, exact=False))
        seconds.append(time.perf_counter() - began)
    return Result(min(seconds), documents, 0)


def time_spark(case: Case, rounds: int, threads: int, totals: bool) -> Result:
    """The same steps on Spark's frames: ranks in a window for each dataset, and one sort by R.

    Args:
        totals: with the running total of tokens, which is a window over all rows in Spark's SQL.
    """
    from pyspark.sql import SparkSession, Window
    from pyspark.sql import functions as f

    session = SparkSession.builder.master(f"local[{threads}]").config("spark.driver.memory", "12g")
    # One for each dataset, which a window works on whole: at 1e7 documents on two cores a third faster than four.
    session = session.config("spark.sql.shuffle.partitions", max(2 * threads, case.datasets)).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    ends = np.cumsum(sizes(case)).tolist()
    owner = f.lit(case.datasets - 1)
    for number in reversed(range(case.datasets - 1)):
        owner = f.when(f.col("id") < ends[number], number).otherwise(owner)
    rows = session.range(case.documents).withColumn("dataset", owner)
    kind, level = f.col("dataset") % 3, f.floor(100 * f.rand(1)) / 10
    rows = rows.withColumn("score", f.when(kind == 1, f.rand(2)).when(kind == 2, level))
    rows = rows.withColumn("length", f.floor(1 + 1999 * f.rand(3)).cast("int"))
    rows = rows.withColumn("copies", f.when(f.col("dataset") % 6 == 0, 2).otherwise(1)).cache()
    documents = rows.agg(f.sum("copies")).first()[0]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        copied = rows.withColumn("copy", f.explode(f.expr("sequence(1, copies)")))
        copied = copied.withColumn("tie", f.xxhash64("dataset", "id", "copy"))
        own = Window.partitionBy("dataset")
        ranked = copied.withColumn("rank", f.row_number().over(own.orderBy("score", "tie")))
        placed = ranked.withColumn("r", f.col("rank") / f.count("*").over(own) * documents)
        columns = ["dataset", "id"]
        if totals:
            before = Window.orderBy("r", "tie").rowsBetween(Window.unboundedPreceding, Window.currentRow)
            placed, columns = placed.withColumn("total", f.sum("length").over(before)), [*columns, "total"]
        with tempfile.TemporaryDirectory() as folder:
            placed.orderBy("r", "tie").select(columns).write.mode("overwrite").parquet(folder)
            seconds.append(time.perf_counter() - began)
    session.stop()
    return Result(min(seconds), documents, 0)


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """In a process of its own, so that peaks and caches of one side are not another's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def rate(result: Result) -> float:
    return result.documents / result.seconds / 1e6


def compare(case: Case, rounds: int, all_threads: int) -> Iterator[str]:
    """A line for each side."""
    numpy = apart(time_files, case, rounds, numpy_files)
    yield f"numpy, the same files     {rate(numpy):6.2f} M documents/s, peak {peak(numpy)}"
    yield f"numpy, order alone        {rate(apart(time_unordered_ties, case, rounds)):6.2f} M documents/s"
    tenth = BYTES_PER_DOCUMENT * numpy.documents // 10
    for threads, memory in [*((threads, 1 << 40) for threads in sorted({1, all_threads})), (all_threads, tenth)]:
        own = apart(time_files, case, rounds, partial(build, threads=threads, memory=memory))
        if own.checksums != numpy.checksums:
            raise SystemExit(f"{threads} threads and {memory} bytes: the files are not those of NumPy")
        side = f"builder, {threads} threads{', a tenth' if memory == tenth else ''}"
        ratio = rate(own) / rate(numpy)
        yield f"{side:<25} {rate(own):6.2f} M documents/s, {ratio:.1f} times numpy, peak {peak(own)}"


def compare_with_spark(case: Case, rounds: int, threads: int) -> Iterator[str]:
    """The builder runs before and after each side of Spark, which takes a hundred times as long; its mean counts."""

    def own() -> float:
        return rate(apart(time_files, case, rounds, partial(build, threads=threads, memory=1 << 40)))

    before = own()
    yield f"builder, {case.documents:,} documents  {before:6.2f} M documents/s"
    for totals in (False, True):
        spark = rate(apart(time_spark, case, rounds, threads, totals))
        after = own()
        side = f"spark local[{threads}], {'with tokens' if totals else 'order alone'}"
        times = (before + after) / 2 / spark
        yield f"{side:<28} {spark:7.3f} M documents/s; builder then {after:6.2f}: {times:.0f} times as fast"
        before = after


def peak(result: Result) -> str:
    return f"{result.peak_bytes / result.documents:.1f} bytes a document"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, default=1e7, help="before repetition")
    parser.add_argument("--datasets", type=int, default=19)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--spark-documents", type=float, default=0, help="compare with Spark's local mode at this size")
    arguments = parser.parse_args()
    for line in compare(Case(int(arguments.documents), arguments.datasets), arguments.rounds, arguments.threads):
        print(line, flush=True)
    if arguments.spark_documents:
        for line in compare_with_spark(
            Case(int(arguments.spark_documents), arguments.datasets), arguments.rounds, arguments.threads
        ):
            print(line, flush=True)


if __name__ == "__main__":
    main()
