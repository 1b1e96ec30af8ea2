"""`kaiyuan-data score --input`: documents in, documents with scores out; what a filter drops goes beside them.

Personal data is masked first, so that scores are of the text that is written and no dropped text keeps it. Filters that
use no quantile come next; quantiles are of what they leave, within each dataset; then come the filters by quantiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.engines.stage import Engine, Record, Stage, Target
from data_tools.reading.arrow_values import to_doubles
from data_tools.reading.shard import DOCUMENT_ID, MOST_DOCUMENTS, Shard
from data_tools.reading.tasks import Settings
from data_tools.scores.filters import Condition, parse_filter, require_columns
from data_tools.scores.input_columns import find_columns
from data_tools.scores.parse import parse_scorers
from data_tools.scores.quantiles import QuantileColumn, RankedRows, ShardRanks, choice_seed, parse_quantile, rank
from data_tools.scores.steps import FilterStep, MaskStep, NumbersStep, ScoreStep, add_column
from data_tools.steps.datasets import Dataset, datasets_identity, find_datasets
from data_tools.steps.folder import (
    Workplace,
    publish_documents,
    refuse_bad_rows,
    refuse_empty,
    stage_of,
    summary,
    workplace,
)
from data_tools.steps.schemas import one_schema
from data_tools.steps.shards import DOCUMENTS, LEFT_OUT, ApplySteps, ShardFile
from data_tools.steps.step import DROPPED, Step, column_list, steps_identity
from megatron_kaiyuan.errors import UserError, require_between
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.outputs import identity_of

TOKENS = "tokens"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ScoreOptions:
    """What is done with documents.

    Attributes:
        scorers: as `parse_scorers` takes them.
        filters: conditions that all must hold, as `parse_filter` takes them.
        quantiles: as `parse_quantile` takes them.
        mask: personal data is masked.
        seed: of the draws between equal scores.
        max_bad_rows: lines that hold no document and may be left out.
    """

    scorers: Sequence[str] = ()
    filters: Sequence[str] = ()
    quantiles: Sequence[str] = ()
    mask: bool = False
    seed: int = 1234
    max_bad_rows: int = 0

    def __post_init__(self) -> None:
        require_between("--max-bad-rows", self.max_bad_rows, 0, MOST_DOCUMENTS)


def score_documents(
    inputs: Sequence[str],
    output: Path,
    options: ScoreOptions,
    settings: Settings,
    engine: Engine,
    task_bytes: int = 0,
    force: bool = False,
) -> list[str]:
    """Write the folder of documents; return what to print: a line a dataset.

    Raises:
        UserError: an argument or an input is wrong, or the output cannot be written.
    """
    plan = _plan(options)
    datasets = find_datasets(inputs, settings, task_bytes, quiet=not engine.is_first)
    shards = [shard for dataset in datasets for shard in dataset.shards]
    plan.check(datasets, settings)
    steps_made = steps_identity(plan.steps, settings)
    identity = identity_of("score", datasets_identity(datasets), steps_made, plan.about(), options.max_bad_rows)
    with workplace(output, "score", identity, shards, engine, force=force) as place:
        manifest = place.manifest
        if manifest is None:
            stage = stage_of(place, "score", ApplySteps(plan.steps, settings, options.max_bad_rows), shards)
            records = engine.run(stage)
            refuse_bad_rows(shards, records, options.max_bad_rows)
            refuse_empty(shards, records)
            if plan.quantiles:
                stage, records = _add_quantiles(plan, place, stage, records, engine)
            stage, records = one_schema(place, stage, records, engine)
            if engine.is_first:
                about = {"command": "score", "steps": steps_made[2:], **plan.about()}
                manifest = publish_documents(place, stage, records, about)
    return summary(manifest) if manifest else []


@dataclass(frozen=True)
class _Plan:
    steps: tuple[Step, ...]
    quantiles: tuple[QuantileColumn, ...]
    later: tuple[Condition, ...]  # filters that use quantiles
    conditions: tuple[Condition, ...]
    seed: int

    def about(self) -> dict[str, Any]:
        """What the manifest says beside the steps."""
        return {
            "filters": [str(condition) for condition in self.conditions],
            "quantiles": [str(quantile) for quantile in self.quantiles],
            "seed": self.seed,
        }

    def check(self, datasets: Sequence[Dataset], settings: Settings) -> None:
        """Put a batch without rows through the steps: models load, and columns are there, before anything is written.

        Raises:
            UserError: a model is wrong, or a column is missing or of a wrong type.
        """
        for dataset in datasets:
            found = find_columns(dataset, settings, self._needs())
            documents = add_column(found, DROPPED, pa.nulls(0, pa.string()))
            for step in self.steps:
                documents = (step.check if isinstance(step, ScoreStep) else step.apply)(documents)
            for quantile in self.quantiles:
                _require_columns(documents, quantile, dataset.name)
                documents = add_column(documents, quantile.name, pa.nulls(0, pa.float64()))
            FilterStep(self.later).apply(documents)
            known = documents.schema.names
            require_columns(self.conditions, known, f"dataset {dataset.name!r}" if dataset.name else "the input")

    def _needs(self) -> set[str]:
        """Columns that the input must have."""
        scorers = [scorer for step in self.steps if isinstance(step, ScoreStep) for scorer in step.scorers]
        needed = set(_ranked(self.quantiles)).union(*(one.columns() for one in self.conditions))
        needed |= {scorer.column for scorer in scorers if hasattr(scorer, "column")}
        return needed.difference(
            (quantile.name for quantile in self.quantiles), *(scorer.columns for scorer in scorers)
        )


def _plan(options: ScoreOptions) -> _Plan:
    scorers = parse_scorers(options.scorers)
    quantiles = tuple(map(parse_quantile, options.quantiles))
    names = [quantile.name for quantile in quantiles]
    if len(set(names)) < len(names):
        raise UserError("--quantile: a column is named twice; name each once")
    conditions = tuple(map(parse_filter, options.filters))
    later = tuple(condition for condition in conditions if condition.columns() & set(names))
    first = tuple(condition for condition in conditions if condition not in later)
    steps: list[Step] = [MaskStep()] if options.mask else []
    steps += [ScoreStep(tuple(scorers))] if scorers else []
    steps += [FilterStep(first)] if first else []
    steps += [NumbersStep(_ranked(quantiles))] if quantiles else []
    if not steps:
        raise UserError("score: nothing to do; name --scorer, --filter, --quantile or --mask-personal-data")
    return _Plan(tuple(steps), quantiles, later, conditions, options.seed)


def _ranked(quantiles: Sequence[QuantileColumn]) -> tuple[str, ...]:
    """The columns of numbers that quantiles are made from."""
    tokens = [TOKENS] if any(quantile.by_tokens for quantile in quantiles) else []
    return tuple(dict.fromkeys([*(quantile.column for quantile in quantiles), *tokens]))


def _require_columns(documents: pa.RecordBatch, quantile: QuantileColumn, dataset: str) -> None:
    for column in (quantile.column, TOKENS) if quantile.by_tokens else (quantile.column,):
        where = f"--quantile {quantile.column}: " + (f"dataset {dataset!r} " if dataset else "the input ")
        if column not in documents.schema.names:
            hint = "; documents have no tokens: score the corpus that is made of them" if column == TOKENS else ""
            raise UserError(f"{where}has no column {column!r}, it has {column_list(documents.schema.names)}{hint}")


def _add_quantiles(
    plan: _Plan, place: Workplace, scored: Stage, records: Sequence[Record], engine: Engine
) -> tuple[Stage, list[Record]]:
    """The stage that adds quantiles and applies the filters by them, and its records."""
    shards: Sequence[Shard] = scored.tasks
    paths = [scored.folder / f"{name}{DOCUMENTS}" for name in scored.names]
    ranks: list[_ShardRanks] = []
    for _, group in groupby(range(len(shards)), key=lambda number: shards[number].dataset):
        numbers = list(group)
        shard = shards[numbers[0]]
        seed = choice_seed(plan.seed, shard.name)
        found = {
            quantile.name: rank(
                engine,
                place.folder / f"quantile-{shard.dataset:05d}-{number:03d}",
                _Read(quantile),
                [paths[number] for number in numbers],
                quantile,
                seed,
            )
            for number, quantile in enumerate(plan.quantiles)
        }
        ranks += [_ShardRanks(found, at) for at in range(len(numbers))]
    tasks = [_Ranked(*task) for task in zip(shards, paths, records, ranks, strict=True)]
    stage = replace(scored, title="quantiles", folder=place.folder / "quantiles", do=_Finish(plan.later), tasks=tasks)
    done = engine.run(stage)
    return replace(stage, tasks=shards), done


@dataclass(frozen=True)
class _Read:
    """Gives `rank` the rows of a shard that was scored."""

    quantile: QuantileColumn

    def __call__(self, path: Path) -> RankedRows:
        wanted = [DOCUMENT_ID, self.quantile.column, *([TOKENS] if self.quantile.by_tokens else [])]
        with pq.ParquetFile(path) as file:
            table = file.read([name for name in wanted if name in file.schema_arrow.names])
        ids = table.column(DOCUMENT_ID).to_numpy()
        return RankedRows(_floats(table, self.quantile.column), ids, self._tokens(table))

    def _tokens(self, table: pa.Table) -> np.ndarray | None:
        if not self.quantile.by_tokens:
            return None
        tokens = _floats(table, TOKENS)
        return np.nan_to_num(tokens).astype(np.int64)


def _floats(table: pa.Table, column: str) -> np.ndarray:
    """A column as float64, NaN where it has no value; all NaN where a shard of JSON lines has no such field."""
    if column not in table.column_names:
        return np.full(len(table), np.nan)
    return to_doubles(table.column(column)).to_numpy()


@dataclass(frozen=True)
class _ShardRanks:
    ranks: dict[str, ShardRanks]
    at: int

    def add_to(self, documents: pa.Table) -> pa.Table:
        for name, ranks in self.ranks.items():
            documents = documents.append_column(name, ranks.quantiles(self.at))
        return documents


@dataclass(frozen=True)
class _Ranked:
    """A scored shard, and where its ranks are."""

    shard: Shard
    path: Path
    record: Record
    ranks: _ShardRanks


@dataclass(frozen=True)
class _Finish:
    """The work of the last stage: the shard's documents with their quantiles, and the filters by these."""

    conditions: tuple[Condition, ...]

    def __call__(self, task: _Ranked, target: Target) -> Record:
        documents = task.ranks.add_to(pq.read_table(task.path))
        earlier = pq.read_table(task.path.with_name(task.path.name.removesuffix(DOCUMENTS) + LEFT_OUT))
        counts: Counter[str] = Counter(task.record["dropped"])
        with ShardFile(target, DOCUMENTS) as kept, ShardFile(target, LEFT_OUT) as dropped:
            for batch in _batches(documents.append_column(DROPPED, pa.nulls(len(documents), pa.string()))):
                judged = FilterStep(self.conditions).apply(batch)
                reasons = judged.column(DROPPED)
                kept.write(judged.filter(pc.is_null(reasons)).drop_columns([DROPPED]))
                dropped.write(judged.filter(pc.is_valid(reasons)))
                counts.update(reasons.drop_null().to_pylist())
            schema = documents.schema.append(pa.field(DROPPED, pa.string()))
            for batch in _batches(pa.concat_tables([schema.empty_table(), earlier], promote_options="default")):
                dropped.write(batch)
        files = {suffix: checksum(target.path(suffix)) for suffix in (DOCUMENTS, LEFT_OUT)}
        return {**task.record, "documents": kept.rows, "dropped": dict(sorted(counts.items())), "checksums": files}


def _batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """The table in pieces, one without rows where it has none."""
    yield from table.to_batches(_ROWS_AT_ONCE) or [pa.RecordBatch.from_pylist([], table.schema)]
