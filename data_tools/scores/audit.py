"""`kaiyuan-data audit`: does a score rank quality, or the places that texts are from; and what do its quantiles hold.

A score is said to rank groups (domains, sources) rather than quality when half or more of the variance of its ranks
lies between them, or when a document of one group beats, or loses to, one of the others in 90 % of all pairs. Of two
scores that agree over all (rank correlation 0.5 or more) but less than half as much within the groups, it is said that
they agree on groups. Both are signs to look, not proofs: domains may differ in quality. Groups of fewer than 30 scored
documents do not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.reading.shard import MOST_DOCUMENTS
from data_tools.reading.tasks import Settings
from data_tools.scores.audit_groups import FEWEST, correlation, find_groups, separation
from data_tools.scores.audit_lines import audit_lines
from data_tools.scores.audit_source import DATASET, DRAW, CorpusSource, DocumentSource, ScoredDataset, read_table
from data_tools.scores.corpora import is_corpus
from data_tools.scores.portrait import READ, QuantileRows, cut, label_columns, portray, verdict_columns, wanted_texts
from data_tools.steps.datasets import find_datasets
from megatron_kaiyuan.errors import UserError, require_between

_BETWEEN, _EXTREME_AUC, _AGREE = 0.5, 0.9, 0.5


@dataclass(frozen=True)
class AuditOptions:
    """What is looked at.

    Attributes:
        scores: columns of numbers.
        by: column of the groups, or `dataset`; None: `domain` where it tells documents apart, else `dataset`.
        quantiles: in the portrait.
        samples: beginnings for each quantile.
        most: documents; of more, those with the lowest draws.
        tokenizer: of corpora, if not where their manifests say.
    """

    scores: Sequence[str]
    by: str | None = None
    quantiles: int = 10
    samples: int = 3
    most: int = 1_000_000
    seed: int = 1234
    tokenizer: Path | None = None


def audit(
    words: Sequence[str],
    options: AuditOptions,
    settings: Settings,
    output: Path | None = None,
    as_json: bool = False,
    force: bool = False,
) -> str:
    """Look at corpora or documents; return the table or one JSON object, and write the page where `output` is given.

    Raises:
        UserError: a column is not there or holds no numbers, or something else lies at `output`.
    """
    from data_tools.scores.audit_page import build_audit_page, check_audit_page

    _check(options)
    sources = _sources(words, options, settings)
    if output:
        check_audit_page(words, output, force)
    found = _figures(sources, options)
    if output:
        build_audit_page(found, words, output, force)
    if as_json:
        return json.dumps(found, ensure_ascii=False)
    return "\n".join([*audit_lines(found), *([f"audit: {output}"] if output else [])])


def _check(options: AuditOptions) -> None:
    if not options.scores or len(set(options.scores)) < len(options.scores):
        raise UserError("--score: name at least one column, and each once")
    for name, value, least, most in (
        ("--quantiles", options.quantiles, 1, 1000),
        ("--samples", options.samples, 0, READ),
        ("--most-documents", options.most, 1, MOST_DOCUMENTS),
        ("--seed", options.seed, 0, 2**63 - 1),
    ):
        require_between(name, value, least, most)


def _sources(words: Sequence[str], options: AuditOptions, settings: Settings) -> list[ScoredDataset]:
    corpora = [word for word in words if is_corpus(Path(word))]
    if corpora and len(corpora) < len(words):
        raise UserError(f"audit: {corpora[0]} is a corpus and others are not; name corpora or documents")
    if corpora:
        return [CorpusSource(Path(word).name, Path(word), options.tokenizer) for word in words]
    return [DocumentSource(dataset, settings) for dataset in find_datasets(words, settings, quiet=True)]


def _figures(sources: Sequence[ScoredDataset], options: AuditOptions) -> dict[str, Any]:
    wanted = {score: "--score" for score in options.scores}
    if options.by not in (None, DATASET):
        wanted.setdefault(str(options.by), "--by")
    table, total = read_table(sources, wanted, options.most, options.seed)
    for score in options.scores:
        kind = table.schema.field(score).type
        if not pa.types.is_floating(kind):
            held = "missing scores only" if pa.types.is_null(kind) else "text, not numbers"
            raise UserError(f"--score {score}: the column holds {held}; name another one")
    groups = find_groups(table, sources, options.by)
    values = {score: table.column(score).to_numpy() for score in options.scores}
    draw = table.column(DRAW).to_numpy()
    quantiles = {score: cut(scores, draw, options.quantiles) for score, scores in values.items()}
    texts = _texts(sources, table, [one for some in quantiles.values() for one in some])
    labels, verdicts = label_columns(table, groups.by), verdict_columns(table)
    found: dict[str, Any] = {"documents": total, "looked_at": len(table), "by": groups.by, "groups": groups.names}
    found["scores"] = {}
    for score, scores in values.items():
        found["scores"][score] = {
            **separation(scores, groups),
            "portrait": portray(
                table, score, quantiles[score], texts, (groups.shown, groups.names), labels, verdicts, options.samples
            ),
        }
    found["pairs"] = [correlation(one, two, values, groups) for one, two in combinations(options.scores, 2)]
    found["warnings"] = [*_without_score(table, sources, values, total), *_warnings(found)]
    return found


def _texts(
    sources: Sequence[ScoredDataset], table: pa.Table, quantiles: Sequence[QuantileRows]
) -> dict[tuple[int, int], str]:
    wanted = wanted_texts(table, quantiles)
    found: dict[tuple[int, int], str] = {}
    for number, source in enumerate(sources):
        places = {place for dataset, place in wanted if dataset == number}
        if places:
            found |= {(number, place): text for place, text in source.texts(places).items()}
    return found


def _without_score(
    table: pa.Table, sources: Sequence[ScoredDataset], values: dict[str, np.ndarray], total: int
) -> Iterator[str]:
    """Datasets that have no part in the figures."""
    dataset = table.column(DATASET).to_numpy()
    for number, source in enumerate(sources):
        mine = dataset == number
        name = f"dataset {source.name}" if source.name else "the input"
        if not mine.any():
            yield f"{name} has no documents" + (" among those looked at" if len(table) < total else "")
        for score, scores in values.items():
            if mine.any() and np.isnan(scores[mine]).all():
                yield f"none of the {int(mine.sum()):,} documents of {name} has a score {score}"


def _warnings(found: dict[str, Any]) -> Iterator[str]:
    what = f"{found['by']}s" if not found["by"].endswith("s") else found["by"]
    if len(found["groups"]) < 2:
        return
    for score, about in found["scores"].items():
        between = about["between"]
        extreme = {
            name: group["auc"]
            for name, group in about["groups"].items()
            if group["auc"] is not None
            and min(group["scored"], about["documents"] - group["scored"]) >= FEWEST
            and max(group["auc"], 1 - group["auc"]) >= _EXTREME_AUC
        }
        if extreme or (between is not None and between >= _BETWEEN):
            reasons = [f"AUC of {name} {auc:.3f}" for name, auc in extreme.items()]
            reasons += [f"{between:.0%} of the variance of its ranks lies between them"] if between is not None else []
            yield (
                f"{score} ranks {what} rather than quality ({', '.join(reasons)}): compare documents within one "
                f"{found['by']}, or use its quantiles within each"
            )
    for pair in found["pairs"]:
        over_all, mean = pair["over_all"], pair["mean"]
        if over_all is not None and mean is not None and abs(over_all) >= _AGREE and mean * over_all < over_all**2 / 2:
            yield (
                f"{' and '.join(pair['scores'])} agree on {what}, not on documents: their rank correlation is "
                f"{over_all:.2f} over all and {mean:.2f} within"
            )
