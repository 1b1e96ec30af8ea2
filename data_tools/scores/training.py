"""`kaiyuan-data scorer train`: a linear classifier from documents, with a record of what it was made from beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_tools.reading.documents import document_batches
from data_tools.reading.inputs import InputFile
from data_tools.reading.shard import TEXT
from data_tools.reading.tasks import Settings
from data_tools.scores.train_linear import check_settings, train_linear
from data_tools.steps.datasets import Dataset, datasets_identity, find_datasets
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, publish, read_sealed_json, temporary_beside, write_sealed_json
from megatron_kaiyuan.forms import FileEntry, Form, require_form
from megatron_kaiyuan.outputs import Output, claim, identity_of, journal_of

_FORMAT = "kaiyuan-linear-scorer"


@dataclass(frozen=True)
class TrainOptions:
    """As `train_linear` takes them."""

    word_ngrams: int = 2
    dim: int = 64
    epochs: int = 5
    learning_rate: float = 0.5
    buckets: int = 0
    seed: int = 1234


def train_scorer(
    positives: Sequence[str],
    negatives: Sequence[str],
    output: Path,
    options: TrainOptions,
    settings: Settings,
    force: bool = False,
) -> str:
    """Write `output` and its record; return a line to print.

    Args:
        positives, negatives: files, folders, patterns or URLs of documents.
        force: a classifier that this command made from other input is replaced.

    Raises:
        UserError: a setting or an input is wrong, a file is on both sides, something else lies at `output`, or the
            library is missing.
    """
    check_settings(**asdict(options))
    found = [find_datasets(words, settings) for words in (positives, negatives)]
    _refuse_shared(*found)
    identity = identity_of("scorer train", *map(datasets_identity, found), asdict(options))
    record = _record_of(output)
    place = Output(output, "a classifier with its record", kind="file", files=(output, record))
    with claim(place, identity, _earlier, force=force):
        model, sealed = temporary_beside(output), temporary_beside(record)
        try:
            wanted, unwanted = (_texts(datasets, settings) for datasets in found)
            counts = train_linear(wanted, unwanted, model, **asdict(options))
            size = model.stat().st_size
            entry = {"bytes": size, "checksum": checksum(model)}
            about = {"format": _FORMAT, "identity": identity, **counts, "settings": asdict(options), "file": entry}
            write_sealed_json(sealed, about)
            publish([(model, output), (sealed, record)], journal_of(output))
        except BaseException:
            if not journal_of(output).exists():
                model.unlink(missing_ok=True)
                sealed.unlink(missing_ok=True)
            raise
    return (
        f"scorer train: {counts['positives']:,} positives, {counts['negatives']:,} negatives, "
        f"{counts['words']:,} words, {counts['buckets']:,} buckets, {size / 1e6:.1f} MB: {output}"
    )


def _refuse_shared(positives: Sequence[Dataset], negatives: Sequence[Dataset]) -> None:
    wanted = {_real(file) for dataset in positives for file in dataset.files}
    for dataset in negatives:
        for file in dataset.files:
            if _real(file) in wanted:
                raise UserError(f"{file.name}: is in --positives and in --negatives; name it on one side only")


def _real(file: InputFile) -> str:
    return file.location if not file.is_local else os.path.realpath(file.location)


def _record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


class _Record(Form):
    identity: str
    file: FileEntry


def _earlier(output: Output) -> str | None:
    """Recognises a classifier by the record beside it, see `outputs.Earlier`."""
    model, record = output.files
    if not model.exists() and not record.exists():
        return None
    try:
        about = read_sealed_json(record, "record of a classifier")
    except UserError:
        raise output.in_the_way(model if model.exists() else record) from None
    if about.get("format") != _FORMAT:
        raise output.in_the_way(record)
    recorded = require_form(record, about, _Record, "move it away, or name another --output")
    if model.exists() and checksum(model) != recorded.file.checksum:
        raise output.in_the_way(model, "was changed after it was written")
    return recorded.identity


def _texts(datasets: Sequence[Dataset], settings: Settings) -> Iterator[str]:
    for dataset in datasets:
        for shard in dataset.shards:
            for batch in document_batches(shard, settings):
                yield from batch.documents.column(TEXT).to_pylist()
