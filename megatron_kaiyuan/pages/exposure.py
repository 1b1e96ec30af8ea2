"""How often each part of each dataset is seen over all phases: the exposure table.

Selective repetition by nested top fractions (report, section 4) shows here as a staircase: the best decile is seen in
every phase, the worst once. A decile counts documents by their score in the whole corpus; ties by the recipe's draw.
Documents without a score are the lowest, whether a phase drops them or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class ExposureGroup(NamedTuple):
    """A part of a corpus: what a phase takes of it, every copy counted, and what there is."""

    documents: int
    tokens: int
    corpus_documents: int
    corpus_tokens: int


@dataclass(frozen=True)
class Appearance:
    """A dataset in one phase: ten deciles by score, worst first, or one group without a score."""

    score: str | None
    groups: list[ExposureGroup]


@dataclass(frozen=True)
class Exposure:
    """A row of the table. Figures are tokens seen / tokens there are, over all phases.

    Attributes:
        score: the column that the deciles follow; None for a dataset that is never scored.
        seen: by decile, worst first, or one figure without a score; None for a group that holds no token.
        whole: the same for the whole corpus.
        spread: phases that took the dataset by another score or none, which are spread evenly over the deciles.
    """

    dataset: str
    score: str | None
    seen: list[float | None]
    whole: float | None
    spread: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "score": self.score,
            "seen": self.seen,
            "whole": self.whole,
            "spread_evenly": self.spread,
        }


def read_appearances(entries: dict[str, Any]) -> dict[str, Appearance]:
    """From the field `exposure` of a phase's profile.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    found = {}
    for name, entry in entries.items():
        groups = [ExposureGroup(*(int(group[field]) for field in ExposureGroup._fields)) for group in entry["groups"]]
        if not groups:
            raise ValueError(f"exposure of {name!r} has no groups")
        found[name] = Appearance(entry["score"], groups)
    return found


def exposure_table(phases: Iterable[tuple[str, dict[str, Appearance]]]) -> list[Exposure]:
    """One row for each dataset and score column, in the order in which they appear.

    Args:
        phases: name and appearances of each.
    """
    by_dataset: dict[str, list[tuple[str, Appearance]]] = {}
    for phase, appearances in phases:
        for dataset, appearance in appearances.items():
            by_dataset.setdefault(dataset, []).append((phase, appearance))
    return [
        _row(dataset, score, appearances)
        for dataset, appearances in by_dataset.items()
        for score in _columns(appearances)
    ]


def _columns(appearances: Sequence[tuple[str, Appearance]]) -> list[str | None]:
    scored: list[str | None] = [one.score for _, one in appearances if one.score is not None]
    return list(dict.fromkeys(scored)) or [None]


def _row(dataset: str, score: str | None, appearances: Sequence[tuple[str, Appearance]]) -> Exposure:
    size = next(len(one.groups) for _, one in appearances if one.score == score)
    seen: list[float | None] = [0.0] * size
    whole: float | None = 0.0
    spread = []
    for phase, appearance in appearances:
        everything = _seen(appearance.groups)
        whole = _sum(whole, everything)
        if appearance.score == score and len(appearance.groups) == size:
            parts = [_seen([group]) for group in appearance.groups]
        else:
            parts = [everything] * size
            spread.append(phase)
        seen = [_sum(before, part) for before, part in zip(seen, parts, strict=True)]
    return Exposure(dataset, score, seen, whole, spread)


def _seen(groups: Sequence[ExposureGroup]) -> float | None:
    there = sum(group.corpus_tokens for group in groups)
    return sum(group.tokens for group in groups) / there if there else None


def _sum(before: float | None, part: float | None) -> float | None:
    return None if before is None or part is None else before + part
