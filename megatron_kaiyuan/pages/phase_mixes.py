"""What a token stream is made of: the phases' manifests and profiles, laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_kaiyuan.data.phase import RecipeForm
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Count, Form, Share, require_form
from megatron_kaiyuan.pages.exposure import Appearance, exposure_table, read_appearances

# The version of profile.json since which every count is exact (data_tools/curriculum/profile.py).
_EXACT_PROFILE = 2
_REMEDY = "build the phase again"


class _Corpus(Form):
    name: str
    missing_scores: Count = 0
    sequences: Count = 0


class _Manifest(Form):
    name: str
    order: str
    tokens: Count
    recipe: RecipeForm = RecipeForm()
    corpora: list[_Corpus] = []


class _DatasetProfile(Form):
    tokens: list[Count]
    mean_quantile: list[Share | None]


class _Group(Form):
    documents: Count
    tokens: Count
    corpus_documents: Count
    corpus_tokens: Count


class _Appearance(Form):
    score: str | None
    groups: Annotated[list[_Group], Field(min_length=1)]


class _Profile(Form):
    version: int = 1
    tokens: Annotated[list[Count], Field(min_length=1, max_length=10_000)]
    datasets: Annotated[dict[str, _DatasetProfile], Field(min_length=1)]
    exposure: Annotated[dict[str, _Appearance], Field(min_length=1)]


@dataclass(frozen=True)
class PhaseMix:
    """One phase's place in the stream, and what it mixes.

    Attributes:
        start, end: token offsets in the whole stream.
        edges: token offsets [buckets + 1] in the whole stream.
        tokens: by dataset, tokens in each bucket, padding of packs left out.
        mean_quantile: by dataset, mean rank by score in its whole corpus, in (0, 1), in each bucket; NaN without.
        exposure: by dataset, what the phase takes of each part of it.
        recipe: the phase as the recipe gave it.
        notes: what the figures of a phase that an earlier version built lack, a line each.
    """

    name: str
    order: str
    start: int
    end: int
    edges: NDArray[np.float64]
    tokens: dict[str, NDArray[np.float64]]
    mean_quantile: dict[str, NDArray[np.float64]]
    exposure: dict[str, Appearance]
    recipe: dict[str, Any]
    notes: list[str]

    def overall_quantile(self) -> NDArray[np.float64]:
        """Mean quality quantile of each bucket over the datasets that have one, weighted by tokens."""
        tokens = np.array(list(self.tokens.values()))
        quantiles = np.array([self.mean_quantile[name] for name in self.tokens])
        weights = np.where(np.isnan(quantiles), 0.0, tokens)
        total = weights.sum(axis=0)
        sums = (weights * np.nan_to_num(quantiles)).sum(axis=0)
        return np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)


def read_phases(folders: Sequence[Path]) -> list[PhaseMix]:
    """Read every phase in the order of the stream.

    Raises:
        UserError: a manifest or profile is missing or damaged.
    """
    phases: list[PhaseMix] = []
    for folder in folders:
        manifest, profile = _read(folder)
        phases.append(_mix(manifest, profile, phases[-1].end if phases else 0))
    return phases


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path, beside = folder / "profile.json", folder / "manifest.json"
    manifest, profile = read_json(beside, "phase manifest"), read_json(path, "phase profile")
    total = require_form(beside, manifest, _Manifest, _REMEDY).tokens
    read = require_form(path, profile, _Profile, _REMEDY)
    lengths = {len(read.tokens)}
    for dataset in read.datasets.values():
        lengths |= {len(dataset.tokens), len(dataset.mean_quantile)}
    if lengths != {len(read.tokens)} or read.tokens[-1] != total or sorted(read.tokens) != read.tokens:
        raise UserError(f"{path}: its buckets are not those of a phase of {total} tokens; {_REMEDY}")
    if sum(sum(dataset.tokens) for dataset in read.datasets.values()) > total:
        raise UserError(f"{path}: its datasets hold more than the {total} tokens of the phase; {_REMEDY}")
    return manifest, profile


def stream_tables(phases: Sequence[PhaseMix]) -> dict[str, Any]:
    """The figures of the stream as numbers, for `--json` and for the tables of a page.

    Returns:
        `tokens`: of the stream; `phases`: for each its place and its datasets' tokens and share of the tokens of all
        its documents (padding of packed phases left out); `datasets`: the same over all phases;
        `along`: for each phase the buckets' upper edges in tokens of the stream, and by dataset the share of the
        documents' tokens and the mean quality quantile in them; `exposure`: `Exposure.as_json` for each row.
    """
    by_dataset: dict[str, int] = {}
    for phase in phases:
        for name, tokens in _totals(phase).items():
            by_dataset[name] = by_dataset.get(name, 0) + tokens
    there = sum(by_dataset.values()) or 1
    return {
        "tokens": phases[-1].end,
        "phases": [_phase_table(phase) for phase in phases],
        "datasets": [{"dataset": name, "tokens": n, "share": n / there} for name, n in by_dataset.items()],
        "along": [_along(phase) for phase in phases],
        "exposure": [row.as_json() for row in exposure_table((phase.name, phase.exposure) for phase in phases)],
    }


def _mix(manifest: dict[str, Any], profile: dict[str, Any], start: int) -> PhaseMix:
    edges = np.array([0, *profile["tokens"]], dtype=np.float64) + start
    datasets = profile["datasets"]
    return PhaseMix(
        name=str(manifest["name"]),
        order=str(manifest["order"]),
        start=start,
        end=start + int(manifest["tokens"]),
        edges=edges,
        tokens={name: np.array(entry["tokens"], dtype=np.float64) for name, entry in datasets.items()},
        # None becomes NaN.
        mean_quantile={name: np.array(entry["mean_quantile"], dtype=np.float64) for name, entry in datasets.items()},
        exposure=read_appearances(profile["exposure"]),
        recipe=manifest.get("recipe", {}),
        notes=_notes(manifest) if profile.get("version", 1) < _EXACT_PROFILE else [],
    )


def _notes(manifest: dict[str, Any]) -> list[str]:
    """What version 1 of profile.json did not count right."""
    name = manifest["name"]
    notes = [
        f"{name} was built by an earlier version: along the tokens each document counts where it begins; build it "
        "again for exact shares"
    ]
    policies = {line["corpus"]: line.get("missing_scores") for line in manifest.get("recipe", {}).get("datasets", [])}
    dropped = [
        f"{entry['name']} ({entry['missing_scores']:,} of {entry['sequences']:,} documents)"
        for entry in manifest.get("corpora", [])
        if entry.get("missing_scores") and policies.get(entry["name"]) == "drop"
    ]
    if dropped:
        notes.append(
            f"{name} leaves documents without a score out of the corpora that its exposure and quality refer to: "
            f"{', '.join(dropped)}"
        )
    return notes


def _totals(phase: PhaseMix) -> dict[str, int]:
    return {name: int(tokens.sum()) for name, tokens in phase.tokens.items()}


def _phase_table(phase: PhaseMix) -> dict[str, Any]:
    totals = _totals(phase)
    there = sum(totals.values()) or 1
    return {
        "phase": phase.name,
        "order": phase.order,
        "start": phase.start,
        "end": phase.end,
        "datasets": {name: {"tokens": tokens, "share": tokens / there} for name, tokens in totals.items()},
    }


def _along(phase: PhaseMix) -> dict[str, Any]:
    tokens = np.array(list(phase.tokens.values()))
    total = tokens.sum(axis=0)
    shares = np.divide(tokens, total, out=np.zeros_like(tokens), where=total > 0)
    return {
        "phase": phase.name,
        "tokens": phase.edges[1:].astype(np.int64).tolist(),
        "share": {name: row.round(6).tolist() for name, row in zip(phase.tokens, shares, strict=True)},
        "mean_quantile": {name: _or_none(values) for name, values in phase.mean_quantile.items()},
        "overall_quantile": _or_none(phase.overall_quantile()),
    }


def _or_none(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in values]
