"""`kaiyuan-data audit`: does a score rank quality, or the places that texts are from; and what do its quantiles hold.

A score is said to rank groups (domains, sources) rather than quality when half or more of the variance of its ranks
lies between them, or when a document of one group beats, or loses to, one of the others in 90 % of all pairs. Of two
scores that agree over all (rank correlation 0.5 or more) but less than half as much within the groups, it is said that
they agree on groups. Both are signs to look, not proofs: domains may differ in quality.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.reading.documents import MOST_DOCUMENTS
from data_tools.reading.tasks import Settings
from data_tools.scores.audit_lines import audit_lines
from data_tools.scores.audit_source import DATASET, DRAW, CorpusSource, DocumentSource, Source, read_table
from data_tools.scores.corpora import is_corpus
from data_tools.scores.portrait import Quantile, cut, label_columns, portray, verdict_columns, wanted_texts
from data_tools.scores.statistics import aucs, between_share, spearman
from data_tools.steps.datasets import find_datasets
from megatron_kaiyuan.errors import UserError, require_between

_BETWEEN, _EXTREME_AUC, _AGREE, _FEWEST = 0.5, 0.9, 0.5, 30


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
    from megatron_kaiyuan.report.audit import build_audit_page, check_audit_page

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
        ("--quantiles", options.quantiles, 1, 10_000),
        ("--samples", options.samples, 0, 10_000),
        ("--most-documents", options.most, 1, MOST_DOCUMENTS),
        ("--seed", options.seed, 0, 2**63 - 1),
    ):
        require_between(name, value, least, most)


def _sources(words: Sequence[str], options: AuditOptions, settings: Settings) -> list[Source]:
    corpora = [word for word in words if is_corpus(Path(word))]
    if corpora and len(corpora) < len(words):
        raise UserError(f"audit: {corpora[0]} is a corpus and others are not; name corpora or documents")
    if corpora:
        return [CorpusSource(Path(word).name, Path(word), options.tokenizer) for word in words]
    return [DocumentSource(dataset, settings) for dataset in find_datasets(words, settings, quiet=True)]


def _figures(sources: Sequence[Source], options: AuditOptions) -> dict[str, Any]:
    columns = [*options.scores, *([options.by] if options.by not in (None, DATASET) else [])]
    table, total = read_table(sources, columns, options.most, options.seed)
    for score in options.scores:
        kind = table.schema.field(score).type
        if not pa.types.is_floating(kind):
            held = "missing scores only" if pa.types.is_null(kind) else "text, not numbers"
            raise UserError(f"--score {score}: the column holds {held}; name another one")
    by, numbers, names = _groups(table, sources, options.by)
    values = {score: table.column(score).to_numpy() for score in options.scores}
    draw = table.column(DRAW).to_numpy()
    quantiles = {score: cut(scores, draw, options.quantiles) for score, scores in values.items()}
    texts = _texts(sources, table, [one for some in quantiles.values() for one in some])
    labels, verdicts = label_columns(table, by), verdict_columns(table)
    found: dict[str, Any] = {"documents": total, "looked_at": len(table), "by": by, "groups": list(names), "scores": {}}
    for score, scores in values.items():
        found["scores"][score] = {
            **_separation(scores, numbers, names),
            "portrait": portray(
                table, score, quantiles[score], texts, (numbers, names), labels, verdicts, options.samples
            ),
        }
    found["pairs"] = [_pair(one, two, values, numbers, names) for one, two in combinations(options.scores, 2)]
    found["warnings"] = list(_warnings(found))
    return found


def _groups(table: pa.Table, sources: Sequence[Source], by: str | None) -> tuple[str, np.ndarray, list[str]]:
    """The column of the groups, the number of each document's and their names, largest group first."""
    if by is None:
        domains = table.column("domain").drop_null().unique().to_pylist() if "domain" in table.column_names else []
        by = "domain" if len(domains) > 1 or (domains and len(sources) == 1) else DATASET
    if by == DATASET:
        labels = np.array([source.name or "documents" for source in sources], object)[table.column(DATASET).to_numpy()]
    else:
        column = table.column(by)
        values = column.to_pylist()
        labels = np.array([f"{value:g}" if isinstance(value, float) else value or "none" for value in values], object)
    names, numbers, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    place: np.ndarray = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return by, place[numbers], names[order].tolist()


def _texts(sources: Sequence[Source], table: pa.Table, quantiles: Sequence[Quantile]) -> dict[tuple[int, int], str]:
    wanted = wanted_texts(table, quantiles)
    found: dict[tuple[int, int], str] = {}
    for number, source in enumerate(sources):
        places = {place for dataset, place in wanted if dataset == number}
        if places:
            found |= {(number, place): text for place, text in source.texts(places).items()}
    return found


def _separation(scores: np.ndarray, numbers: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How far the groups stand apart in a score."""
    there = ~np.isnan(scores)
    values, groups = scores[there], numbers[there]
    found = {}
    for number, (name, auc) in enumerate(zip(names, aucs(values, groups, len(names)).tolist(), strict=True)):
        mine = values[groups == number]
        median = float(np.median(mine)) if len(mine) else None
        found[name] = {"documents": len(mine), "auc": _number(auc), "median": median}
    return {
        "documents": int(there.sum()),
        "missing": int((~there).sum()),
        "between": _number(between_share(values, groups, len(names))),
        "groups": found,
    }


def _pair(
    one: str, two: str, values: dict[str, np.ndarray], numbers: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    within = {
        name: _number(spearman(values[one][numbers == number], values[two][numbers == number]))
        for number, name in enumerate(names)
    }
    sizes = np.bincount(numbers, minlength=len(names))
    known = [(sizes[number], value) for number, value in enumerate(within.values()) if value is not None]
    mean = sum(size * value for size, value in known) / sum(size for size, _ in known) if known else None
    return {
        "scores": [one, two],
        "over_all": _number(spearman(values[one], values[two])),
        "within": within,
        "mean": mean,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


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
            and min(group["documents"], about["documents"] - group["documents"]) >= _FEWEST
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
