"""Shards: what one task writes. Whole or absent, and never made twice.

Beside each corpus `P` to come lies a folder `P.shards` with, for each task, a corpus under the task's name. The folder
of the first json key also holds `NAME.bad_rows.jsonl` and, written last, the record `NAME.task.json`: a task with a
record is finished. The name is a fingerprint of the input and the settings, so a record never stands for other content.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from data_tools.corpora.corpus import CorpusWriter, Documents, manifest_path
from data_tools.preprocessing.encoding import Encoded, encode_rows
from data_tools.preprocessing.held_out import split_rows
from data_tools.preprocessing.progress import Meter
from data_tools.reading.bad_rows import too_many
from data_tools.reading.columns import column_rows
from data_tools.reading.inputs import require_unchanged
from data_tools.reading.tasks import KEPT, Settings, Task, TaskGroup
from data_tools.reading.text import Rows, line_rows
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import Count, Form, require_form
from megatron_kaiyuan.locks import lock


@dataclass
class ShardRecord:
    """The record of a finished group of tasks.

    Attributes:
        rows: lines or Parquet rows that were read.
        sequences, tokens, text_bytes: sums over the json keys.
        skipped: rows that are in no corpus, by reason; an empty text counts for each json key.
        bad_rows: how many of them were bad.
        missing_scores: documents without a score, by its name; over the json keys.
        held_out, held_out_tokens: sequences that are held out, and their tokens, over the json keys.
    """

    rows: int = 0
    sequences: int = 0
    tokens: int = 0
    text_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    bad_rows: int = 0
    missing_scores: Counter[str] = field(default_factory=Counter)
    held_out: int = 0
    held_out_tokens: int = 0


class RecordForm(Form):
    """A `Record` in a file."""

    rows: Count
    sequences: Count
    tokens: Count
    text_bytes: Count
    skipped: dict[str, Count]
    bad_rows: Count
    missing_scores: dict[str, Count]
    held_out: Count
    held_out_tokens: Count

    def record(self) -> ShardRecord:
        """Return the record that was written."""
        found = ShardRecord(**{name: getattr(self, name) for name in type(self).model_fields})
        found.skipped, found.missing_scores = Counter(found.skipped), Counter(found.missing_scores)
        return found


class Shards:
    """The shard folders of one run.

    Args:
        prefixes: the corpora to come, one for each json key.
    """

    def __init__(self, prefixes: Sequence[Path]):
        self.folders = [prefix.with_name(f"{prefix.name}.shards") for prefix in prefixes]

    def corpora(self, group: TaskGroup) -> list[Path]:
        """Prefix of the group's corpus for each json key."""
        return [folder / group.name for folder in self.folders]

    @property
    def lock_path(self) -> Path:
        """Shared by the ranks that write shards; held by one process alone while it joins them."""
        return self.folders[0] / "run.lock"

    def bad_rows_path(self, group: TaskGroup) -> Path:
        return self.folders[0] / f"{group.name}.bad_rows.jsonl"

    def record_path(self, group: TaskGroup) -> Path:
        return self.folders[0] / f"{group.name}.task.json"

    def finished(self, group: TaskGroup) -> ShardRecord | None:
        """The record of the task, when it was done before and its corpora are still there."""
        path = self.record_path(group)
        if not path.exists() or not all(is_there(prefix) for prefix in self.corpora(group)):
            return None
        try:
            return require_form(path, read_sealed_json(path, "record of a shard"), RecordForm).record()
        except UserError:
            return None


class ShardWriter:
    """Does tasks one after another; each worker has one, with its own tokenizer.

    Args:
        max_bad_rows: a task that has more stops at once.
    """

    def __init__(
        self,
        settings: Settings,
        shards: Shards,
        max_bad_rows: int,
        meter: Meter,
        tokenizer: TextTokenizer,
    ):
        self.settings, self.shards, self.meter, self.tokenizer = settings, shards, meter, tokenizer
        self._description = self.tokenizer.description()
        self._max_bad_rows = max_bad_rows

    def write(self, group: TaskGroup, *, wait: bool = True) -> ShardRecord | None:
        """Do the tasks of a group, unless they are finished.

        Args:
            wait: for a process that is doing them; else None is returned.

        Raises:
            UserError: the input cannot be read, has too many bad rows, or the shard cannot be written.
        """
        if (record := self.shards.finished(group)) is not None:
            return record
        try:
            with lock(self.shards.folders[0] / f"{group.name}.lock", seconds=None if wait else 0, keep=False):
                record = self.shards.finished(group)
                if record is None:
                    record = self._write(group)
                    self.meter.finish(group.size)
        except BlockingIOError:
            return None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise UserError(f"{self.shards.folders[0]}: cannot be written ({reason}); make room, {KEPT}") from error
        return record

    def _write(self, group: TaskGroup) -> ShardRecord:
        # Before the corpora change, so that there is never a record of others than are there.
        self.shards.record_path(group).unlink(missing_ok=True)
        record = ShardRecord()
        with ExitStack() as stack:
            bad_rows = stack.enter_context(atomic_path(self.shards.bad_rows_path(group)))
            bad_file = stack.enter_context(open(bad_rows, "w", encoding="utf-8"))
            names = list(dict.fromkeys(task.file.name for task in group.tasks))
            columns = self.settings.score_keys, names, self.settings.meta_keys
            writers = [
                stack.enter_context(CorpusWriter(prefix, self._description, *columns))
                for prefix in self.shards.corpora(group)
            ]
            before = 0
            for number, task in enumerate(group.tasks):
                for rows in _read(task, self.settings):
                    self._take(rows, group, number, record, writers, bad_file)
                    self.meter.advance(before + rows.read - task.start, len(rows.domains), record.tokens)
                require_unchanged(task.file)
                before += task.size
            for writer in writers:
                writer.skipped.update(record.skipped)
        record.sequences = sum(writer.sequences for writer in writers)
        record.held_out = sum(writer.sequences for writer in writers[len(self.settings.json_keys) :])
        record.held_out_tokens = sum(writer.tokens for writer in writers[len(self.settings.json_keys) :])
        record.skipped["empty text"] += sum(writer.skipped["empty text"] for writer in writers)
        write_sealed_json(self.shards.record_path(group), vars(record))
        return record

    def _take(
        self,
        rows: Rows,
        group: TaskGroup,
        number: int,
        record: ShardRecord,
        writers: Sequence[CorpusWriter],
        bad_file: IO[str],
    ) -> None:
        """Encode a batch of rows of a task, and put each into the corpora of its split."""
        splits = split_rows(rows, self.settings)
        encoded = [encode_rows(self.tokenizer, split, self.settings.append_eod) for split in splits]
        rows.bad = sorted(place for split in splits for place in split.bad)
        self._note(rows, group, number, record, bad_file)
        places = ((split, key) for split in range(len(splits)) for key in self.settings.json_keys)
        for (split, key), writer in zip(places, writers, strict=True):
            self._add(key, splits[split], encoded[split][key], writer, record)

    def _add(self, key: str, rows: Rows, encoded: Encoded, writer: CorpusWriter, record: ShardRecord) -> None:
        if not rows.texts[key]:
            return
        tokens, lengths = encoded
        labels = rows.domains, rows.sources, rows.scores, rows.meta
        writer.add(Documents(tokens, lengths, rows.text_bytes[key], *labels))
        for name, scores in rows.scores.items():
            record.missing_scores[name] += int(np.count_nonzero(np.isnan(scores) & (lengths > 0)))
        record.tokens += len(tokens)
        record.text_bytes += sum(rows.text_bytes[key])

    def _note(self, rows: Rows, group: TaskGroup, number: int, record: ShardRecord, bad_file: IO[str]) -> None:
        record.rows += rows.count
        record.skipped.update(rows.left_out)
        for place in rows.bad:
            record.bad_rows += 1
            record.skipped[place.reason] += 1
            bad_file.write(json.dumps({"task": number, **place._asdict()}, ensure_ascii=False) + "\n")
            if record.bad_rows > self._max_bad_rows:
                raise too_many(group.tasks[number], place, record.bad_rows, self._max_bad_rows)


def _read(task: Task, settings: Settings) -> Iterator[Rows]:
    return (column_rows if task.file.format == "parquet" else line_rows)(task, settings)


def is_there(prefix: Path) -> bool:
    """Whether the files that the manifest of a corpus names have the sizes that it says."""
    try:
        files = json.loads(manifest_path(prefix).read_bytes())["files"]
        return all(prefix.with_name(name).stat().st_size == about["bytes"] for name, about in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
