"""Text to Megatron corpora: tasks to shards over processes, then the shards joined.

The bytes are the same for any number of workers and ranks, any cut into tasks, and any number of kills and restarts.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from data_tools.corpora.corpus_files import corpus_output, earlier_corpus
from data_tools.preprocessing.joining import (
    Done,
    earlier_bad_rows,
    finished_tasks,
    join,
    joined_earlier,
    remove,
    tidy,
    within_limit,
)
from data_tools.preprocessing.progress import Bar, forget
from data_tools.preprocessing.sample import sample_texts, unscored_keys
from data_tools.preprocessing.shards import Record, Shards
from data_tools.preprocessing.workers import Job, WriterPool
from data_tools.reading.inputs import find_inputs
from data_tools.reading.place import Place
from data_tools.reading.tasks import Settings, Task, cut_tasks, share, work_identity
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.locks import lock
from megatron_kaiyuan.outputs import Output, check, claim, require_name

__all__ = ["Settings", "Totals", "preprocess"]


@dataclass
class Totals:
    """What preprocessing wrote, over all corpora.

    Attributes:
        engine: which tokenizer engine was used and why; "" when every shard was there already.
        missing_scores: documents without a score, by its name.
        joined: whether the corpora are there; else these are the figures of one rank's shards.
    """

    prefixes: list[Path]
    sequences: int
    tokens: int
    text_bytes: int
    skipped: Counter[str]
    engine: str = ""
    place: Place = field(default_factory=Place)
    joined: bool = True
    missing_scores: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        left_out = "".join(f"; left out: {count:,} {reason}" for reason, count in sorted(self.skipped.items()) if count)
        left_out += "".join(
            f"; {name} missing: {count:,}" for name, count in sorted(self.missing_scores.items()) if count
        )
        ratio = self.text_bytes / max(self.tokens, 1)
        rank = "" if self.joined else f" by rank {self.place.rank} of {self.place.world}, to join with --merge-only"
        return (
            f"preprocess: {self.sequences:,} documents, {self.tokens / 1e6:.2f} M tokens, "
            f"{ratio:.2f} bytes/token{rank}{left_out}"
        )


def preprocess(
    inputs: Sequence[str | Path],
    output_prefix: Path,
    settings: Settings,
    workers: int = 1,
    max_bad_rows: int = 0,
    task_bytes: int = 0,
    place: Place | None = None,
    merge_only: bool = False,
    force: bool = False,
) -> Totals:
    """Write the corpus `{output_prefix}_{key}_document` for each json key.

    Args:
        inputs: files, folders, patterns or URLs.
        workers: processes that tokenize; 1 works in this process.
        max_bad_rows: rows that may be left out because they are no JSON, lack a field and so on.
        task_bytes: size of a task; 0 takes one that fits the inputs.
        place: which of several ranks this is; with more than one, shards are written but not joined.
        merge_only: do no task, only join the shards that the ranks have left.
        force: corpora of other input or settings may be replaced.

    Raises:
        UserError: an argument or an input is wrong, something else lies at the output, there are too many bad rows, or
            the disk is full; the message names file and line.
    """
    _check_arguments(settings, workers, max_bad_rows, task_bytes)
    require_name(output_prefix, "--output-prefix")
    place = place or Place()
    files = find_inputs(inputs, quiet=place.rank > 0)
    # What is in the way is found before the tokenizer is loaded and its engine proven.
    prefixes = [output_prefix.with_name(f"{output_prefix.name}_{key}_document") for key in settings.json_keys]
    bad_rows = Output(
        output_prefix.with_name(f"{output_prefix.name}.bad_rows.jsonl"), "a list of bad rows", "--output-prefix", "file"
    )
    check(bad_rows, "", earlier_bad_rows)
    tokenizer = TextTokenizer(settings.tokenizer, settings.eod_token, settings.engine)
    description = tokenizer.description()
    identities = {
        prefix: work_identity(files, settings, description, key)
        for key, prefix in zip(settings.json_keys, prefixes, strict=True)
    }
    tasks = cut_tasks(files, settings, description, task_bytes)
    for key in unscored_keys(files, settings) if place.rank == 0 and not merge_only else ():
        print(
            f"warning: no row at the beginning of the input has the score {key!r}; is it the right name?",
            file=sys.stderr,
        )
    shards = Shards(prefixes)
    work = _Work(tasks, shards, Job(settings, tuple(prefixes), place.rank, max_bad_rows), tokenizer, workers, place)
    if place.world > 1 and not merge_only:
        for prefix, identity in identities.items():
            check(corpus_output(prefix), identity, earlier_corpus, force)
        with lock(shards.lock_path, shared=True):
            records = [record for _, record in work.do()]
        return _totals(work, prefixes, records, joined=False)
    with ExitStack() as claims:
        for prefix, identity in identities.items():
            claims.enter_context(claim(corpus_output(prefix), identity, earlier_corpus, force=force))
        # Shared by runs of one prefix and other json keys; and what a killed one left of it is removed.
        claims.enter_context(claim(bad_rows, "", earlier_bad_rows))
        claims.enter_context(lock(shards.lock_path))
        joined = joined_earlier(shards, identities, tasks)
        if joined is None:
            done = work.collect() if merge_only else work.do_alone()
            _refuse_unscored(settings, [record for _, record in done])
            join(shards, identities, done, bad_rows.path)
            joined = [record for _, record in done]
        remove(shards)
    return _totals(work, prefixes, joined, joined=True)


@dataclass
class _Work:
    """One rank's part of the run."""

    tasks: Sequence[Task]
    shards: Shards
    job: Job
    tokenizer: TextTokenizer
    workers: int
    place: Place
    engine: str = ""

    def do_alone(self) -> list[Done]:
        """Do everything; after a failure leave only what a later run can use."""
        try:
            return self.do()
        except BaseException:
            tidy(self.shards)
            raise

    def do(self) -> list[Done]:
        """This rank's tasks with their records, in the order of the inputs; what is finished is not done again."""
        mine = share(self.tasks, self.place)
        found = [(task, self.shards.finished(task)) for task in mine]
        earlier = [(task, record) for task, record in found if record]
        # They come from the largest to the smallest, so that no worker is left with a long one at the end.
        left = [task for task, record in found if not record]
        # The pool before the bar, whose thread would keep it from forking. All is closed at once on an error, so that
        # no worker still writes when this returns.
        with self._pool(left) as pool, self._bar(), closing(self._write(left, pool)) as written:
            done = within_limit(self.shards, chain(earlier, written), self.job.max_bad_rows)
            records = {task.name: record for task, record in done}
        return [(task, records[task.name]) for task in self.tasks if task.name in records]

    def collect(self) -> list[Done]:
        """All tasks with the records that the ranks have left."""
        return list(within_limit(self.shards, finished_tasks(self.shards, self.tasks), self.job.max_bad_rows))

    def _pool(self, tasks: Sequence[Task]) -> AbstractContextManager[WriterPool | None]:
        workers = min(self.workers, len(tasks))
        return WriterPool(self.job, workers, self.tokenizer) if workers > 1 else nullcontext()

    def _write(self, tasks: Sequence[Task], pool: WriterPool | None) -> Generator[Done, None, None]:
        if not tasks:
            return
        sample = sample_texts(list(dict.fromkeys(task.file for task in self.tasks)), self.job.settings)
        self.engine = self.tokenizer.prove(sample, pool.difference if pool else None)
        if pool:
            yield from pool.write(tasks, self.tokenizer.engine)
            return
        writer = self.job.writer(self.tokenizer)
        yield from ((task, writer.write(task)) for task in tasks)

    def _bar(self) -> AbstractContextManager[object]:
        folder = self.shards.folders[0]
        forget(folder, self.place.rank)
        if self.place.rank:
            return nullcontext()
        done = sum(task.size for task in self.tasks if self.shards.record_path(task).exists())
        return Bar(folder, sum(task.size for task in self.tasks), done, self.place.world)


def _check_arguments(settings: Settings, workers: int, max_bad_rows: int, task_bytes: int) -> None:
    for name, value, least in (
        ("--workers", workers, 1),
        ("--max-bad-rows", max_bad_rows, 0),
        ("--task-bytes", task_bytes, 0),
        ("--max-characters", settings.max_characters, 0),
    ):
        if value < least:
            raise UserError(f"{name} {value}: must be at least {least}")
    if settings.text_documents not in ("line", "file"):
        raise UserError(f"--text-documents {settings.text_documents}: is not known; use line or file")
    if settings.text_column and len(settings.json_keys) > 1:
        raise UserError("--text-column names one column; with several --json-keys the columns must have their names")
    if not settings.json_keys or len(set(settings.json_keys)) < len(settings.json_keys):
        raise UserError("--json-keys: name at least one field, and each once")
    if odd := [key for key in settings.json_keys if "/" in key or "\0" in key]:
        raise UserError(f"--json-keys {odd[0]}: becomes part of a file's name, which cannot hold '/'; rename the field")


def _refuse_unscored(settings: Settings, records: Sequence[Record]) -> None:
    """A name that no row has is a mistake, not a missing score of every document.

    Raises:
        UserError: naming it.
    """
    sequences = sum(record.sequences for record in records)
    for name in settings.score_keys:
        if sequences and sum(record.missing_scores[name] for record in records) == sequences:
            raise UserError(f"--score-keys {name}: none of {sequences:,} documents has this score; check the name")


def _totals(work: _Work, prefixes: list[Path], records: Sequence[Record], joined: bool) -> Totals:
    totals = Totals(prefixes, 0, 0, 0, Counter(), work.engine, work.place, joined)
    for record in records:
        totals.sequences += record.sequences
        totals.tokens += record.tokens
        totals.text_bytes += record.text_bytes
        totals.skipped.update(record.skipped)
        totals.missing_scores.update(record.missing_scores)
    totals.skipped = +totals.skipped
    return totals
