"""`kaiyuan-data dedup` from Parquet to Parquet: documents a second, memory, and what it finds of planted copies.

    python -m benchmarks.dedup                            # 100,000 documents of 3 kB
    python -m benchmarks.dedup --documents 1e7 --folder /scratch/dedup    # 32 GB of text; about 40 GB of disk

Documents are made of real text: pieces of 40 words of what this machine keeps (docstrings, Python's language reference,
descriptions of packages), a dozen in a document, drawn at random. A quarter are copies of an earlier one: exact, or
with 0.5 to 20 % of the words replaced. Of a sample of these the exact Jaccard index is worked out in plain Python.
Recall: how many of those with J >= 0.7 are in the cluster of their original. Precision: how many of the removed
documents are copies of the same original as the one that stays for them.

The clock runs from the start of the command to its end. Memory: resident sets of all its processes together, twenty
times a second; pages that processes share count for each, so this is an upper bound. In --folder the text is kept for a
second run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.dedup_texts import english_documents

PIECE_WORDS, PIECES = 40, 12
COPIES, RATES = 0.25, (0.0, 0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2)
ROWS_PER_FILE, ROWS_PER_GROUP, CHECKED = 100_000, 4096, 20_000
THRESHOLD, NGRAM = 0.7, 5

Numbers: TypeAlias = NDArray[np.uint64]


def mix(numbers: Numbers) -> Numbers:
    """SplitMix64 (Steele, Lea, Flood, 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Collection:
    """Documents, each a function of its number alone."""

    def __init__(self, documents: int):
        self._documents = documents
        # Letters only: what the words are must not be a question of normalisation here.
        kept = (["".join(filter(str.isalpha, word)) for word in text.split()] for text in english_documents(10_000))
        words = [word for text in kept for word in text if word.isascii() and word]
        self._pieces = [" ".join(words[i : i + PIECE_WORDS]) for i in range(0, len(words) - PIECE_WORDS, PIECE_WORDS)]
        self._vocabulary = sorted(set(words[:200_000]))

    def rows(self, first: int, last: int) -> pa.Table:
        """`text`; `n`; `origin`: number of the document it is a copy of; `jaccard` with that one, for a sample."""
        numbers: Numbers = np.arange(first, last, dtype=np.uint64)
        origins = self._origins(numbers)
        draws = mix(origins[:, None] * np.uint64(PIECES) + np.arange(PIECES, dtype=np.uint64))
        texts = [" ".join([self._pieces[i] for i in row]) for row in (draws % np.uint64(len(self._pieces))).tolist()]
        indexes = np.full(len(numbers), np.nan)
        for at in np.flatnonzero(origins != numbers):
            draw = random.Random(first + int(at))
            original = texts[at]
            texts[at] = self._edited(original, draw.choice(RATES), draw)
            if draw.random() < CHECKED / (COPIES * self._documents):
                indexes[at] = jaccard(original, texts[at])
        columns = {"text": pa.array(texts, pa.large_string()), "n": numbers, "origin": origins, "jaccard": indexes}
        return pa.table(columns)

    def _origins(self, numbers: Numbers) -> Numbers:
        """Of a copy its original, which comes before it; of others themselves."""
        origins = numbers.copy()
        copies = np.flatnonzero(is_copy(numbers))
        drawn = mix(numbers[copies] ^ np.uint64(0x5555)) % numbers[copies]
        while (again := is_copy(drawn)).any():
            drawn[again] -= np.uint64(1)
        origins[copies] = drawn
        return origins

    def _edited(self, text: str, rate: float, draw: random.Random) -> str:
        words = text.split(" ")
        for place in draw.sample(range(len(words)), round(rate * len(words))):
            words[place] = draw.choice(self._vocabulary)
        return " ".join(words) if rate else text.upper()


def is_copy(numbers: Numbers) -> NDArray[np.bool_]:
    return (numbers > 0) & (mix(numbers) < np.uint64(int(COPIES * 2**64)))


def jaccard(one: str, other: str) -> float:
    """Of the word 5-grams, in plain Python."""
    words = [text.lower().split(" ") for text in (one, other)]
    sets = [{tuple(each[i : i + NGRAM]) for i in range(len(each) - NGRAM + 1)} for each in words]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def write_collection(folder: Path, documents: int) -> int:
    """Write it as Parquet, unless it is there; the bytes of text."""
    done = folder.with_name(f"{folder.name}.json")
    if done.exists() and json.loads(done.read_text())["documents"] == documents:
        return int(json.loads(done.read_text())["bytes"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    collection = Collection(documents)
    size = 0
    for number, start in enumerate(range(0, documents, ROWS_PER_FILE)):
        table = collection.rows(start, min(start + ROWS_PER_FILE, documents))
        pq.write_table(table, folder / f"{number:05d}.parquet", compression="zstd", row_group_size=ROWS_PER_GROUP)
        size += pc.sum(pc.binary_length(table["text"])).as_py()
    done.write_text(json.dumps({"documents": documents, "bytes": size}))
    return size


def processes(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from processes(int(child))


def resident_bytes(root: int) -> int:
    total = 0
    for process in processes(root):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total


class Watch:
    """Runs a command and watches it from outside."""

    def __init__(self, line: list[str], work: Path):
        self.peak, self.work_bytes = 0, 0
        self.stages: dict[str, float] = {}
        began = time.monotonic()
        before = os.times()
        with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
            while process.poll() is None:
                self.peak = max(self.peak, resident_bytes(process.pid))
                for path in (*work.glob("sign-*"), *work.glob("*/*/")):
                    self.stages.setdefault(path.name.partition("-")[0], time.monotonic() - began)
                time.sleep(0.05)
            assert process.stdout is not None
            self.output = process.stdout.read()
        if process.returncode:
            raise SystemExit("the command failed")
        self.seconds = time.monotonic() - began
        after = os.times()
        self.cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system

    def stage_seconds(self) -> dict[str, float]:
        """From the first sight of each stage's folder to that of the next."""
        names = sorted(self.stages, key=lambda name: self.stages[name])
        ends = [*(self.stages[name] for name in names[1:]), self.seconds]
        return {name: end - self.stages[name] for name, end in zip(names, ends, strict=True)}


def found(output: Path) -> tuple[float, int, int, int]:
    """Recall, how many pairs it is of, removed documents, and how many of them stand for another original."""
    columns = ["kaiyuan_id", "n", "origin", "jaccard"]
    kept = pq.read_table(output / "documents", columns=columns)
    gone = pq.read_table(output / "dropped", columns=[*columns, "duplicate_of"])
    ids = np.concatenate([kept["kaiyuan_id"].to_numpy(), gone["kaiyuan_id"].to_numpy()])
    keepers = np.concatenate([kept["kaiyuan_id"].to_numpy(), gone["duplicate_of"].to_numpy()])
    n, origin, index = (
        np.concatenate([kept[name].to_numpy(), gone[name].to_numpy()]) for name in ("n", "origin", "jaccard")
    )
    by_number: NDArray[np.int64] = np.empty(len(n), np.int64)
    by_number[n] = np.arange(len(n))
    cluster = keepers
    planted = np.flatnonzero(index >= THRESHOLD)
    together = cluster[planted] == cluster[by_number[origin[planted]]]
    order = np.argsort(ids)
    keeper = order[np.searchsorted(ids[order], gone["duplicate_of"].to_numpy())]
    wrong = int((origin[keeper] != gone["origin"].to_numpy()).sum())
    return float(together.mean()) if len(planted) else 1.0, len(planted), len(gone), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, default=1e5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where text and result go; default: a temporary one")
    parser.add_argument("options", nargs="*", help="more options of the command, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        size = write_collection(folder / "text", int(arguments.documents))
        output = folder / "unique"
        for path in (output, Path(f"{output}.work")):
            shutil.rmtree(path, ignore_errors=True)
        line = [
            sys.executable,
            "-m",
            "data_tools.cli",
            "dedup",
            "--input",
            str(folder / "text"),
            "--output",
            str(output),
        ]
        line += ["--workers", str(arguments.workers), "--json", *arguments.options]
        watch = Watch(line, Path(f"{output}.work"))
        documents = int(arguments.documents)
        rate, load = documents / watch.seconds, os.getloadavg()[0]
        print(f"{documents:,} documents, {size / 1e6:,.0f} MB of text, {arguments.workers} workers, load {load:.0f}")
        print(f"  {watch.seconds:,.0f} s, {rate:,.0f} documents/s; {watch.cpu_seconds:,.0f} s of CPU time,")
        print(
            f"  {documents / watch.cpu_seconds:,.0f} documents a second and core; {watch.peak / 2**30:.2f} GiB at most"
        )
        print("  stages: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in watch.stage_seconds().items()))
        recall, pairs, removed, wrong = found(output)
        print(f"  recall {recall:.4f} of {pairs:,} planted pairs with J >= {THRESHOLD}")
        precision = 1 - wrong / max(removed, 1)
        print(f"  {removed:,} removed, {wrong:,} of them for another original: precision {precision:.6f}")


if __name__ == "__main__":
    main()
