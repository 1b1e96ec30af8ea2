"""JSON lines to Megatron corpora over a pool of processes; the bytes are the same for any number of workers."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_tools.corpus import CorpusWriter, Documents, token_dtype
from data_tools.text import BadRow, LineBatch, check_inputs, line_batches, parse_row
from data_tools.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError

# Batches in flight for each worker: enough to keep it busy while the writer waits for the slowest one.
_AHEAD = 3


@dataclass(frozen=True)
class Settings:
    """What every worker needs to know.

    Attributes:
        json_keys: fields to tokenize; each gives a corpus of its own.
        score_keys: number fields that go into the metadata.
        append_eod: end each document with the tokenizer's end-of-document id.
    """

    tokenizer: Path
    json_keys: tuple[str, ...] = ("text",)
    score_keys: tuple[str, ...] = ()
    append_eod: bool = True
    eod_token: str | None = None


@dataclass
class Encoded:
    """A batch after tokenization.

    Attributes:
        documents: for each json key, the documents in file order.
        bad: the number, from 1, of each bad line, and why.
    """

    batch: LineBatch
    documents: dict[str, Documents] = field(default_factory=dict)
    bad: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Totals:
    """What preprocessing wrote, over all corpora."""

    prefixes: list[Path]
    sequences: int
    tokens: int
    text_bytes: int
    skipped: Counter[str]

    def __str__(self) -> str:
        left_out = "".join(f"; left out: {count:,} {reason}" for reason, count in sorted(self.skipped.items()) if count)
        ratio = self.text_bytes / max(self.tokens, 1)
        return (
            f"preprocess: {self.sequences:,} documents, {self.tokens / 1e6:.2f} M tokens, "
            f"{ratio:.2f} bytes/token{left_out}"
        )


class Encoder:
    """Turns lines into documents; each worker has one, with its own tokenizer."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.tokenizer = TextTokenizer(settings.tokenizer, settings.eod_token)
        self._dtype = token_dtype(self.tokenizer.vocab_size)

    def encode(self, batch: LineBatch) -> Encoded:
        encoded = Encoded(batch)
        rows = []
        for number, line in enumerate(batch.lines, batch.first):
            # Blank lines are common at the end of a file and are no rows.
            if line.strip():
                try:
                    rows.append(self._row(line))
                except BadRow as error:
                    encoded.bad.append((number, str(error)))
        encoded.documents = {key: self._documents(key, rows) for key in self.settings.json_keys}
        return encoded

    def _row(self, line: bytes) -> dict[str, Any]:
        row = parse_row(line, self.settings.json_keys)
        for key in self.settings.json_keys:
            if not row[key].isascii() and _half_pair(row[key]):
                raise BadRow(f"field {key!r} holds half of a surrogate pair")
        for key in self.settings.score_keys:
            value = row.get(key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise BadRow(f"field {key!r} is not a finite number")
        return row

    def _documents(self, key: str, rows: list[dict[str, Any]]) -> Documents:
        texts = [row[key] for row in rows]
        ids = self.tokenizer.encode_batch(texts)
        if self.settings.append_eod:
            for document in ids:
                if document:
                    document.append(self.tokenizer.eod_id)
        lengths = [len(document) for document in ids]
        flat = (token for document in ids for token in document)
        return Documents(
            tokens=np.fromiter(flat, self._dtype, sum(lengths)),
            lengths=lengths,
            text_bytes=[len(text.encode()) for text in texts],
            domains=[_label(row, "domain") for row in rows],
            sources=[_label(row, "source") for row in rows],
            scores={name: [float(row[name]) for row in rows] for name in self.settings.score_keys},
        )


def preprocess(
    inputs: Sequence[Path], output_prefix: Path, settings: Settings, workers: int = 1, max_bad_rows: int = 0
) -> Totals:
    """Write the corpus `{output_prefix}_{key}_document` for each json key.

    Args:
        workers: processes that tokenize; 1 works in this process.
        max_bad_rows: lines that may be left out because they are no JSON, lack a field and so on.

    Raises:
        UserError: an argument or an input is wrong, or there are too many bad rows; the message names file and line.
    """
    check_inputs(inputs)
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    encoder = Encoder(settings)
    prefixes = [output_prefix.with_name(f"{output_prefix.name}_{key}_document") for key in settings.json_keys]
    names = [str(path) for path in inputs]
    totals = Totals(prefixes, 0, 0, 0, Counter())
    with ExitStack() as stack:
        writers = [
            stack.enter_context(CorpusWriter(prefix, encoder.tokenizer.description(), settings.score_keys, names))
            for prefix in prefixes
        ]
        bad: Counter[str] = Counter()
        for encoded in _progress(inputs, _encode_all(encoder, line_batches(inputs), workers)):
            _count_bad(encoded, bad, max_bad_rows)
            for writer, key in zip(writers, settings.json_keys, strict=True):
                writer.add(encoded.documents[key])
                totals.text_bytes += sum(encoded.documents[key].text_bytes)
        for writer in writers:
            writer.skipped.update(bad)
    totals.sequences = sum(writer.sequences for writer in writers)
    totals.tokens = sum(writer.tokens for writer in writers)
    totals.skipped = bad + Counter({"empty text": sum(writer.skipped["empty text"] for writer in writers)})
    return totals


def _count_bad(encoded: Encoded, bad: Counter[str], allowed: int) -> None:
    for number, reason in encoded.bad:
        bad[reason] += 1
        if bad.total() > allowed:
            beyond = f"the {bad.total()}th bad row, --max-bad-rows is {allowed}" if allowed else "a bad row"
            raise UserError(
                f"{encoded.batch.path}:{number}: {reason} ({beyond}); mend the line, "
                "or leave such lines out with a higher --max-bad-rows"
            )


def _encode_all(encoder: Encoder, batches: Iterator[LineBatch], workers: int) -> Iterator[Encoded]:
    """Encode batches in order, with a bounded number of them in memory."""
    if workers == 1:
        yield from map(encoder.encode, batches)
        return
    # Spawned, not forked: the tokenizer library and the progress bar run threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(encoder.settings,))
    waiting: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, batch))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process died, most likely for lack of memory; use fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(settings: Settings) -> None:
    global _worker_encoder
    # The pool is the parallelism; the library's own threads would only compete with it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_encoder = Encoder(settings)


_worker_encoder: Encoder


def _encode_in_worker(batch: LineBatch) -> Encoded:
    encoded = _worker_encoder.encode(batch)
    # The lines are not needed any more, and would travel back between the processes.
    encoded.batch = batch._replace(lines=[])
    return encoded


def _progress(inputs: Sequence[Path], encoded: Iterator[Encoded]) -> Iterator[Encoded]:
    """Pass batches on, with a bar over the bytes of the input files when a person watches."""
    total = sum(path.stat().st_size for path in inputs)
    with tqdm(total=total, unit="B", unit_scale=True, desc="preprocess", disable=not sys.stderr.isatty()) as bar:
        finished, current = 0, None
        for result in encoded:
            if current is not None and result.batch.path != current:
                finished += current.stat().st_size
            current = result.batch.path
            bar.update(finished + result.batch.read - bar.n)
            yield result


def _label(row: dict[str, Any], key: str) -> str:
    value = row.get(key, "")
    return value if isinstance(value, str) and not _half_pair(value) else ""


def _half_pair(text: str) -> bool:
    """Whether JSON escapes left half of a surrogate pair, which is no character and has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
