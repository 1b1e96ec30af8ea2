"""What the token stream of a run was made of: the phases' manifests and profiles, laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json


@dataclass(frozen=True)
class PhaseMix:
    """One phase's place in the stream, and what it mixes.

    Attributes:
        start, end: token offsets in the whole stream.
        edges: token offsets [buckets + 1] in the whole stream.
        tokens: by dataset, tokens in each bucket.
        mean_score: by dataset, mean quality in each bucket; NaN without a score.
    """

    name: str
    order: str
    start: int
    end: int
    edges: NDArray[np.float64]
    tokens: dict[str, NDArray[np.float64]]
    mean_score: dict[str, NDArray[np.float64]]

    def overall_score(self) -> NDArray[np.float64]:
        """Mean quality of each bucket over the datasets that have one, weighted by tokens."""
        tokens = np.array(list(self.tokens.values()))
        scores = np.array([self.mean_score[name] for name in self.tokens])
        weights = np.where(np.isnan(scores), 0.0, tokens)
        total = weights.sum(axis=0)
        sums = (weights * np.nan_to_num(scores)).sum(axis=0)
        return np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)


def read_phases(folders: Sequence[Path]) -> list[PhaseMix]:
    """Read every phase in the order of the stream.

    Raises:
        UserError: a manifest or profile is missing or damaged.
    """
    phases: list[PhaseMix] = []
    for folder in folders:
        manifest = read_json(folder / "manifest.json", "phase manifest")
        profile = read_json(folder / "profile.json", "phase profile")
        start = phases[-1].end if phases else 0
        try:
            phases.append(_mix(manifest, profile, start))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder}: manifest or profile lacks a field ({error}); build the phase again") from error
    return phases


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
        mean_score={name: np.array(entry["mean_score"], dtype=np.float64) for name, entry in datasets.items()},
    )
