"""Ranges of a corpus's sequences as tasks: decoded, scored, and the scores written beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_tools.corpora.sidecar import sidecar_slice
from data_tools.engines.stage import Record, Target
from data_tools.scores.scorer import TEXT, Scorer
from data_tools.scores.steps import ScoreStep
from data_tools.tokenizers.decoding import CorpusText
from megatron_kaiyuan.data.metadata import metadata_path

COLUMNS = ".parquet"
# Few thousand tasks of a large corpus, none so small that its model loads for nothing.
_TASKS, _SMALLEST_TOKENS = 4096, 1 << 22
# What is decoded and scored at once.
_BATCH_TOKENS, _BATCH_SEQUENCES = 1 << 18, 512


class Range(NamedTuple):
    """Sequences first, ..., stop - 1, and their tokens."""

    first: int
    stop: int
    tokens: int


def cut_ranges(lengths: NDArray[np.int32], tokens: int = 0) -> list[Range]:
    """Ranges of about equally many tokens, whatever the engine; at least one.

    Args:
        lengths: of all sequences.
        tokens: wanted in each; 0 fits it to the corpus.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    wanted = tokens or max(_SMALLEST_TOKENS, total // _TASKS)
    found, first, before = [], 0, 0
    while first < len(lengths):
        stop = max(first + 1, int(np.searchsorted(ends, before + wanted, "right")))
        found.append(Range(first, stop, int(ends[stop - 1]) - before))
        first, before = stop, int(ends[stop - 1])
    return found or [Range(0, 0, 0)]


@dataclass(frozen=True)
class ScoreRange:
    """The work of a stage over ranges.

    Attributes:
        prefix, tokenizer: the corpus, and where its tokenizer is now.
        hidden: columns of the sidecar that scorers do not see, as they are about to be replaced.
    """

    prefix: Path
    tokenizer: Path
    scorers: tuple[Scorer, ...]
    hidden: tuple[str, ...]

    def check(self) -> None:
        """Find what is wrong before anything is written.

        Raises:
            UserError: the tokenizer is not there, a model is wrong, or a column is missing.
        """
        _corpus_text(self.prefix, self.tokenizer)
        ScoreStep(self.scorers).check(_documents([], self._rows(Range(0, 0, 0))))

    def __call__(self, task: Range, target: Target) -> Record:
        corpus = _corpus_text(self.prefix, self.tokenizer)
        rows = self._rows(task)
        made = {name: kind for scorer in self.scorers for name, kind in scorer.columns.items()}
        missing: Counter[str] = Counter()
        changed = 0
        with target.file(COLUMNS) as path, pq.ParquetWriter(path, pa.schema(list(made.items()))) as writer:
            for first, stop in _batches(rows.column("tokens").to_numpy()):
                texts = corpus.texts(range(task.first + first, task.first + stop))
                documents = _documents(texts, rows.slice(first, stop - first))
                changed += pc.sum(
                    pc.not_equal(pc.binary_length(documents.column(TEXT)), documents.column("bytes"))
                ).as_py()
                scored = ScoreStep(self.scorers).apply(documents).select(list(made))
                missing.update({name: scored.column(name).null_count for name in made})
                writer.write_batch(scored)
        return {"sequences": len(rows), "changed": changed, "missing": dict(missing)}

    def _rows(self, task: Range) -> pa.Table:
        table = sidecar_slice(metadata_path(self.prefix), task.first, task.stop)
        return table.drop_columns([name for name in table.column_names if name in (*self.hidden, TEXT)])


@cache
def _corpus_text(prefix: Path, tokenizer: Path) -> CorpusText:
    """Once in a process: a large vocabulary takes a second to load."""
    return CorpusText(prefix, tokenizer)


def _batches(lengths: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    ends = np.cumsum(lengths, dtype=np.int64)
    first, before = 0, 0
    while first < len(lengths):
        stop = min(first + _BATCH_SEQUENCES, int(np.searchsorted(ends, before + _BATCH_TOKENS, "right")))
        stop = max(stop, first + 1)
        yield first, stop
        first, before = stop, int(ends[stop - 1])


def _documents(texts: list[str], rows: pa.Table) -> pa.RecordBatch:
    arrays = {name: rows.column(name).combine_chunks() for name in rows.column_names}
    return pa.RecordBatch.from_pydict({TEXT: pa.array(texts, pa.large_string()), **arrays})
