"""Text to Megatron corpora: tasks to shards over processes, then the shards joined.

The bytes are the same for any engine, any number of workers, ranks or partitions, any cut into tasks, and any number
of kills and restarts.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from data_tools.corpora.corpus_files import corpus_output, earlier_corpus, read_manifest
from data_tools.engines.local import LocalEngine
from data_tools.engines.ranks import Pause, claim_order, in_words
from data_tools.engines.spark import SparkEngine
from data_tools.engines.stage import Engine
from data_tools.preprocessing.held_out import HELD_OUT, corpus_prefixes
from data_tools.preprocessing.joining import (
    Done,
    are_made,
    earlier_bad_rows,
    finished_groups,
    join,
    joined_earlier,
    remove,
    tidy,
    within_limit,
)
from data_tools.preprocessing.progress import Bar, forget
from data_tools.preprocessing.sample import sample_texts, unscored_keys
from data_tools.preprocessing.shards import ShardRecord, Shards
from data_tools.preprocessing.workers import Worker, WorkerSettings, WriterPool
from data_tools.reading.inputs import InputFile, find_inputs
from data_tools.reading.tasks import Settings, TaskGroup, cut_groups, work_identity
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.locks import lock
from megatron_kaiyuan.outputs import Output, check, claim, require_name

log = logging.getLogger(__name__)

__all__ = ["Settings", "Totals", "preprocess"]

# How long the first rank waits for the others to leave the shards, and any other one for corpora that get their names.
_LAST_RANK_SECONDS, _PUBLISHING_SECONDS = 60.0, 3.0


@dataclass
class Totals:
    """What preprocessing wrote, over all corpora.

    Attributes:
        tokenizer_engine: which one was used and why; "" when every shard was there already.
        missing_scores: documents without a score, by its name.
        held_out, held_out_tokens: of the sequences and tokens, those that are held out.
        state: "joined"; "there" when an earlier start had made the corpora; "left" by a rank that leaves the joining to
            the first one, with the figures of all ranks.
    """

    prefixes: list[Path]
    sequences: int
    tokens: int
    text_bytes: int
    skipped: Counter[str]
    tokenizer_engine: str = ""
    state: Literal["joined", "there", "left"] = "joined"
    missing_scores: Counter[str] = field(default_factory=Counter)
    held_out: int = 0
    held_out_tokens: int = 0

    def __str__(self) -> str:
        left_out = "".join(f"; left out: {count:,} {reason}" for reason, count in sorted(self.skipped.items()) if count)
        left_out += "".join(
            f"; {name} missing: {count:,}" for name, count in sorted(self.missing_scores.items()) if count
        )
        counts = f"preprocess: {self.sequences:,} documents, {self.tokens / 1e6:.2f} M tokens"
        if self.held_out:
            counts += f", of these held out: {self.held_out:,} documents, {self.held_out_tokens:,} tokens"
        if self.state == "there":
            return f"{counts}, made before{left_out}"
        left = "; the first rank joins the shards, or --merge-only" if self.state == "left" else ""
        return f"{counts}, {self.text_bytes / max(self.tokens, 1):.2f} bytes/token{left_out}{left}"


def preprocess(
    inputs: Sequence[str | Path],
    output_prefix: Path,
    settings: Settings,
    engine: Engine | None = None,
    max_bad_rows: int = 0,
    task_bytes: int = 0,
    merge_only: bool = False,
    force: bool = False,
) -> Totals:
    """Write the corpus `{output_prefix}_{key}_document` for each json key, and `{output_prefix}.heldout_{key}_document`
    where documents are held out.

    Args:
        inputs: files, folders, patterns or URLs.
        engine: who does the work; None: this process. Of several ranks each writes shards until all are there, and the
            first one joins them.
        max_bad_rows: rows that may be left out because they are no JSON, lack a field and so on.
        task_bytes: size of a task; 0 takes one that fits the inputs.
        merge_only: do no task, only join the shards that the ranks have left.
        force: corpora of other input or settings may be replaced.

    Raises:
        UserError: an argument or an input is wrong, something else lies at the output, there are too many bad rows, or
            the disk is full; the message names file and line.
    """
    engine = engine or LocalEngine(1)
    _check_arguments(settings, max_bad_rows)
    require_name(output_prefix, "--output-prefix")
    files = find_inputs(inputs, quiet=not engine.is_first)
    # What is in the way is found before the tokenizer is loaded and its engine proven.
    holds = corpus_prefixes(output_prefix, settings)
    prefixes = list(holds)
    bad_rows = Output(
        output_prefix.with_name(f"{output_prefix.name}.bad_rows.jsonl"), "a list of bad rows", "--output-prefix", "file"
    )
    check(bad_rows, "", earlier_bad_rows)
    tokenizer = TextTokenizer(settings.tokenizer, settings.eod_token, settings.tokenizer_engine)
    description = tokenizer.description()
    identities = {prefix: work_identity(files, settings, description, what) for prefix, what in holds.items()}
    groups = cut_groups(files, settings, description, task_bytes)
    if engine.is_first and not merge_only:
        _warn_of_unscored(files, settings)
    job = WorkerSettings(settings, tuple(prefixes), engine.place.rank, max_bad_rows)
    work = _Work(groups, files, Shards(prefixes), job, tokenizer, engine)
    # Ranks may start when others have ended, as elements of an array do.
    if engine.place.world > 1 and not merge_only and are_made(identities):
        return _made_before(holds)
    if not engine.is_first:
        return _help(work, identities, holds, force)
    with ExitStack() as claims:
        for prefix, identity in identities.items():
            claims.enter_context(claim(corpus_output(prefix), identity, earlier_corpus, force=force))
        # Shared by runs of one prefix and other json keys; and what a killed one left of it is removed.
        claims.enter_context(claim(bad_rows, "", earlier_bad_rows))
        records = _joined(work, identities, bad_rows.path, merge_only)
        _remove(work.shards)
    return _totals(work, records, "joined")


def _warn_of_unscored(files: Sequence[InputFile], settings: Settings) -> None:
    for key in unscored_keys(files, settings):
        log.warning(f"no row at the beginning of the input has the score {key!r}; is it the right name?")


def _joined(work: _Work, identities: Mapping[Path, str], bad_rows: Path, merge_only: bool) -> list[ShardRecord]:
    """The records of all shards, which are made, unless `merge_only`, and joined, unless an earlier start did both."""
    with lock(work.shards.lock_path, shared=True):
        earlier = joined_earlier(work.shards, identities, work.groups)
        if earlier is not None:
            return earlier
        done = work.collect() if merge_only else work.do()
        records = [record for _, record in done]
        _refuse_empty(work.files, work.job.settings, records)
        _refuse_unscored(work.job.settings, records)
        join(work.shards, identities, done, bad_rows)
        return records


def _help(work: _Work, identities: Mapping[Path, str], holds: Mapping[Path, str], force: bool) -> Totals:
    """What a rank other than the first does: shards, until those of all ranks are there."""
    with lock(work.shards.lock_path, shared=True, seconds=None):
        if are_made(identities):
            tidy(work.shards)
            return _made_before(holds)
        _check_places(identities, force)
        return _totals(work, [record for _, record in work.do()], "left")


def _check_places(identities: Mapping[Path, str], force: bool) -> None:
    """The refusals of `claim`; while the first rank gives a corpus its names, half of it is there for a moment."""
    deadline = time.monotonic() + _PUBLISHING_SECONDS
    while True:
        try:
            for prefix, identity in identities.items():
                check(corpus_output(prefix), identity, earlier_corpus, force)
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _remove(shards: Shards) -> None:
    try:
        with lock(shards.lock_path, seconds=_LAST_RANK_SECONDS):
            remove(shards)
    except UserError:
        log.info(f"{shards.folders[0]}: a process still works there; remove it when it has ended")


@dataclass
class _Work:
    """One rank's part of the run."""

    groups: Sequence[TaskGroup]
    files: Sequence[InputFile]
    shards: Shards
    job: WorkerSettings
    tokenizer: TextTokenizer
    engine: Engine
    tokenizer_engine: str = ""

    def do(self) -> list[Done]:
        """All tasks with their records, whoever did them; what is finished is not done again."""
        try:
            return self._do()
        except BaseException:
            # Other ranks may be at work on what has no record yet.
            if self.engine.place.world == 1:
                tidy(self.shards)
            raise

    def _do(self) -> list[Done]:
        found = [(group, self.shards.finished(group)) for group in self.groups]
        earlier = [(group, record) for group, record in found if record]
        # From the largest to the smallest, so that no worker is left with a long one at the end.
        left = sorted((group for group, record in found if not record), key=lambda group: -group.size)
        left = claim_order(left, self.engine.place.rank, self.engine.place.world)
        # The pool before the bar, whose thread would keep it from forking. All is closed at once on an error, so that
        # no worker still writes when this returns.
        with self._pool(left) as pool, self._bar(), closing(self._write(left, pool)) as written:
            done = within_limit(self.shards, chain(earlier, written), self.job.max_bad_rows)
            records = {group.name: record for group, record in done}
        return [(group, records[group.name]) for group in self.groups]

    def collect(self) -> list[Done]:
        """All tasks with the records that the ranks have left."""
        return list(within_limit(self.shards, finished_groups(self.shards, self.groups), self.job.max_bad_rows))

    def _pool(self, groups: Sequence[TaskGroup]) -> AbstractContextManager[WriterPool | None]:
        workers = min(self.engine.workers, len(groups))
        return WriterPool(self.job, workers, self.tokenizer) if workers > 1 else nullcontext()

    def _write(self, groups: Sequence[TaskGroup], pool: WriterPool | None) -> Generator[Done, None, None]:
        if not groups:
            return
        sample = sample_texts(self.files, self.job.settings)
        self.tokenizer_engine = self.tokenizer.prove(sample, pool.difference if pool else None)
        if isinstance(self.engine, SparkEngine):
            calls = [(group, self.tokenizer.engine) for group in groups]
            for number, record in self.engine.call(Worker(self.job), "write", calls, self.shards.folders[0]):
                yield groups[number], record
            return
        left = groups
        pause = Pause(lambda: f"{in_words([group.name for group in left])} in {self.shards.folders[0]}")
        while left:
            busy = []
            for group, record in self._claim(left, pool):
                if record is None:
                    busy.append(group)
                else:
                    yield group, record
            pause(len(busy) == len(left))
            left = busy

    def _claim(
        self, groups: Sequence[TaskGroup], pool: WriterPool | None
    ) -> Generator[tuple[TaskGroup, ShardRecord | None], None, None]:
        """Do the tasks that no other process is doing; those come with None."""
        if pool:
            yield from pool.write(groups, self.tokenizer.engine)
            return
        writer = self.job.writer(self.tokenizer)
        yield from ((group, writer.write(group, wait=False)) for group in groups)

    def _bar(self) -> AbstractContextManager[object]:
        folder, place = self.shards.folders[0], self.engine.place
        forget(folder, place.rank)
        if place.rank:
            return nullcontext()
        done = sum(group.size for group in self.groups if self.shards.record_path(group).exists())
        return Bar(folder, sum(group.size for group in self.groups), done, place.world)


def _check_arguments(settings: Settings, max_bad_rows: int) -> None:
    for name, value, least in (
        ("--max-bad-rows", max_bad_rows, 0),
        ("--max-characters", settings.max_characters, 0),
        ("--max-row-bytes", settings.max_row_bytes, 0),
    ):
        if value < least:
            raise UserError(f"{name} {value}: must be at least {least}")
    if not 0 <= settings.held_out < 1:
        raise UserError(f"--held-out {settings.held_out:g}: must be at least 0 and below 1, as 0.01")
    if settings.text_documents not in ("line", "file"):
        raise UserError(f"--text-documents {settings.text_documents}: is not known; use line or file")
    if settings.text_column and len(settings.json_keys) > 1:
        raise UserError("--text-column names one column; with several --json-keys the columns must have their names")
    if not settings.json_keys or len(set(settings.json_keys)) < len(settings.json_keys):
        raise UserError("--json-keys: name at least one field, and each once")
    if odd := [key for key in settings.json_keys if "/" in key or "\0" in key]:
        raise UserError(f"--json-keys {odd[0]}: becomes part of a file's name, which cannot hold '/'; rename the field")


def _refuse_empty(files: Sequence[InputFile], settings: Settings, records: Sequence[ShardRecord]) -> None:
    """Refuse input without a single document: it is not what the user took it for.

    Raises:
        UserError: naming the input, and what became of its rows.
    """
    if not any(record.sequences for record in records):
        reasons = sum((Counter(record.skipped) for record in records), Counter[str]())
        rows = sum(record.rows for record in records)
        left_out = "".join(f"; left out: {count:,} {reason}" for reason, count in sorted(reasons.items()) if count)
        more = f" and {len(files) - 1:,} more files" if len(files) > 1 else ""
        raise UserError(
            f"{files[0].name}{more}: no document in {rows:,} rows{left_out}; name input that holds text in the fields "
            "of --json-keys"
        )
    held_out = sum(record.held_out for record in records)
    sequences = sum(record.sequences for record in records)
    if settings.held_out and held_out in (0, sequences):
        raise UserError(
            f"--held-out {settings.held_out:g}: holds out {held_out:,} of {sequences:,} documents; give a larger share "
            "of few documents, or a smaller one where it takes all"
        )


def _refuse_unscored(settings: Settings, records: Sequence[ShardRecord]) -> None:
    """A name that no row has is a mistake, not a missing score of every document.

    Raises:
        UserError: naming it.
    """
    sequences = sum(record.sequences for record in records)
    for name in settings.score_keys:
        if sequences and sum(record.missing_scores[name] for record in records) == sequences:
            raise UserError(f"--score-keys {name}: none of {sequences:,} documents has this score; check the name")


def _totals(work: _Work, records: Sequence[ShardRecord], state: Literal["joined", "left"]) -> Totals:
    totals = Totals(list(work.job.prefixes), 0, 0, 0, Counter(), work.tokenizer_engine, state)
    for record in records:
        totals.sequences += record.sequences
        totals.tokens += record.tokens
        totals.held_out += record.held_out
        totals.held_out_tokens += record.held_out_tokens
        totals.text_bytes += record.text_bytes
        totals.skipped.update(record.skipped)
        totals.missing_scores.update(record.missing_scores)
    totals.skipped = +totals.skipped
    return totals


def _made_before(holds: Mapping[Path, str]) -> Totals:
    totals = Totals(list(holds), 0, 0, 0, Counter(), state="there")
    for prefix, what in holds.items():
        manifest = read_manifest(prefix)
        totals.sequences += manifest["sequences"]
        totals.tokens += manifest["tokens"]
        if what.startswith(HELD_OUT):
            totals.held_out += manifest["sequences"]
            totals.held_out_tokens += manifest["tokens"]
    return totals
