"""`kaiyuan-data scorer train`: a linear classifier from documents, with a record of what it was made from beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_tools.reading.documents import TEXT, document_batches
from data_tools.reading.tasks import Settings
from data_tools.scores.train_linear import train_linear
from data_tools.steps.datasets import Dataset, datasets_identity, find_datasets
from megatron_kaiyuan.errors import UserError, require_between
from megatron_kaiyuan.files import checksum, publish, read_sealed_json, temporary_beside, write_sealed_json
from megatron_kaiyuan.outputs import Output, claim, identity_of, journal_of

_FORMAT = "kaiyuan-linear-scorer"


@dataclass(frozen=True)
class TrainOptions:
    """As `train_linear` takes them."""

    word_ngrams: int = 2
    dim: int = 64
    epochs: int = 5
    learning_rate: float = 0.5
    buckets: int = 2_000_000
    seed: int = 1234

    def __post_init__(self) -> None:
        require_between("--word-ngrams", self.word_ngrams, 1, 100)
        require_between("--dim", self.dim, 1, 10_000)
        require_between("--epochs", self.epochs, 1, 10_000)
        require_between("--learning-rate", self.learning_rate, 1e-6, 100)
        require_between("--buckets", self.buckets, 1, 2**31 - 1)
        require_between("--seed", self.seed, 0, 2**31 - 1)


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
        UserError: an input is wrong, something else lies at `output`, or the library is missing.
    """
    found = [find_datasets(words, settings) for words in (positives, negatives)]
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
        f"{counts['words']:,} words, {size / 1e6:.1f} MB: {output}"
    )


def _record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


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
    if model.exists() and checksum(model) != about["file"]["checksum"]:
        raise output.in_the_way(model, "was changed after it was written")
    return str(about["identity"])


def _texts(datasets: Sequence[Dataset], settings: Settings) -> Iterator[str]:
    for dataset in datasets:
        for shard in dataset.shards:
            for batch in document_batches(shard, settings):
                yield from batch.documents.column(TEXT).to_pylist()
