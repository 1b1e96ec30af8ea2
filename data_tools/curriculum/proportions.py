"""How often each dataset of a phase is taken, so that its budget and shares are met. Arithmetic only, exact.

Two ways to set proportions. What `keep` and `repeat` leave, as the report: dataset i gives A_i = tokens x repeat, and a
budget N below their sum A thins every dataset alike, to T_i = N A_i / A, so that neither the shares nor the range of
quality change. Or target shares: T_i = share_i T, and the repetition r_i = T_i / tokens_i follows; it is refused above
`max_repeat` and reported above 4, where text seen again teaches much less than new text (arXiv 2305.16264).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from data_tools.curriculum.recipe import SHARE_TOLERANCE, WORTHWHILE_REPEATS, DatasetRecipe, PhaseRecipe, exactly
from megatron_kaiyuan.errors import UserError


class Kept(NamedTuple):
    """What `keep` leaves of a dataset, each document counted once."""

    rows: int
    tokens: int


class Bernoulli(NamedTuple):
    """Each document once more with this chance, in (0, 1)."""

    probability: float


class Tokens(NamedTuple):
    """Documents in the order of a seeded hash until they hold this many tokens: at most one document above it."""

    amount: int


@dataclass(frozen=True)
class Copies:
    """Every kept document `whole` times, and some once more."""

    whole: int
    extra: Bernoulli | Tokens | None = None

    def tokens(self, kept: Kept) -> Fraction:
        """Tokens that this takes: exact for whole copies, the target of `Tokens`, the expectation of `Bernoulli`."""
        if isinstance(self.extra, Tokens):
            return Fraction(self.whole * kept.tokens + self.extra.amount)
        chance = exactly(self.extra.probability) if self.extra else Fraction(0)
        return kept.tokens * (self.whole + chance)


@dataclass(frozen=True)
class CopyPlan:
    """One `Copies` for each dataset, and what the person who builds the phase should know, a line each."""

    copies: list[Copies]
    warnings: list[str]


def plan_copies(phase: PhaseRecipe, kept: Sequence[Kept]) -> CopyPlan:
    """Decide how often each dataset is taken.

    Args:
        phase: with the datasets that exist. Shares of optional ones that do not are spread over the others.
        kept: for each of them.

    Raises:
        UserError: with the numbers: a dataset is empty after filtering, keep x repeat gives less than the budget, a
            share needs more than `max_repeat`, or a budget leaves a dataset less than one token.
    """
    for dataset, found in zip(phase.datasets, kept, strict=True):
        if not found.rows:
            raise UserError(_about(phase, dataset, f"is empty after filtering: keep {dataset.keep!r} leaves 0"))
    warnings: list[str] = []
    if phase.datasets[0].share is not None:
        targets = _by_share(phase, kept, warnings)
    elif phase.tokens != "all":
        targets = _by_budget(phase, kept, phase.tokens)
    else:
        copies = [_repeated(exactly(dataset.repeat)) for dataset in phase.datasets]
        return CopyPlan(copies, _repetition(phase, [exactly(dataset.repeat) for dataset in phase.datasets]))
    needed = [Fraction(target, found.tokens) for target, found in zip(targets, kept, strict=True)]
    copies = [_exact(target, found) for target, found in zip(targets, kept, strict=True)]
    return CopyPlan(copies, warnings + _repetition(phase, needed))


def _by_budget(phase: PhaseRecipe, kept: Sequence[Kept], budget: int) -> list[int]:
    given = [found.tokens * exactly(dataset.repeat) for dataset, found in zip(phase.datasets, kept, strict=True)]
    total = sum(given, Fraction(0))
    if total < budget:
        raise UserError(
            f"phase {phase.name}: tokens {budget:,} is above the {math.floor(total):,} that keep x repeat gives; "
            "keep or repeat more, or lower tokens"
        )
    return _targets(phase, kept, [amount / total for amount in given], budget)


def _by_share(phase: PhaseRecipe, kept: Sequence[Kept], warnings: list[str]) -> list[int]:
    shares = [exactly(dataset.share or 0) for dataset in phase.datasets]
    total = sum(shares, Fraction(0))
    if abs(total - 1) > SHARE_TOLERANCE:
        warnings.append(
            f"phase {phase.name}: the shares of the datasets that exist sum to {float(total):.4g}; "
            "each is divided by that"
        )
    shares = [share / total for share in shares]
    if phase.tokens == "all":
        budget = min(math.floor(found.tokens / share) for found, share in zip(kept, shares, strict=True))
    else:
        budget = phase.tokens
    targets = _targets(phase, kept, shares, budget)
    for dataset, found, target in zip(phase.datasets, kept, targets, strict=True):
        most = dataset.max_repeat or phase.max_repeat
        if target > math.ceil(exactly(most) * found.tokens):
            raise UserError(
                _about(
                    phase,
                    dataset,
                    f"needs repeat {target / found.tokens:.4g} for share {dataset.share:g} of {budget:,} tokens, and "
                    f"max_repeat is {most:g}: it holds {found.tokens:,} tokens after keep {dataset.keep!r}; "
                    "lower its share or tokens, keep more, or raise max_repeat",
                )
            )
    return targets


def _targets(phase: PhaseRecipe, kept: Sequence[Kept], shares: Sequence[Fraction], budget: int) -> list[int]:
    """`budget` cut by shares that sum to 1 into whole tokens; the largest remainders get what rounding leaves."""
    exact = [share * budget for share in shares]
    targets = [math.floor(amount) for amount in exact]
    by_remainder = sorted(range(len(exact)), key=lambda at: (targets[at] - exact[at], at))
    for at in by_remainder[: budget - sum(targets)]:
        targets[at] += 1
    for dataset, found, target in zip(phase.datasets, kept, targets, strict=True):
        if not found.tokens:
            raise UserError(_about(phase, dataset, f"holds no token in its {found.rows:,} documents; take it out"))
        if not target:
            raise UserError(_about(phase, dataset, f"gets less than one of {budget:,} tokens; raise tokens"))
    return targets


def _exact(target: int, kept: Kept) -> Copies:
    whole, rest = divmod(target, kept.tokens)
    return Copies(whole, Tokens(rest) if rest else None)


def _repeated(repeat: Fraction) -> Copies:
    whole = math.floor(repeat)
    return Copies(whole, Bernoulli(float(repeat - whole)) if repeat > whole else None)


def _repetition(phase: PhaseRecipe, repeats: Sequence[Fraction]) -> list[str]:
    warnings = []
    for dataset, repeat in zip(phase.datasets, repeats, strict=True):
        if repeat > exactly(WORTHWHILE_REPEATS):
            warnings.append(
                _about(
                    phase, dataset, f"is seen {float(repeat):.4g} times; beyond 4 repeats teach much less than new text"
                )
            )
        if repeat > 1 and dataset.score is not None and phase.order == "curriculum":
            warnings.append(
                _about(phase, dataset, f"has a score and repeat {float(repeat):.4g}: copies follow each other closely")
            )
    return warnings


def _about(phase: PhaseRecipe, dataset: DatasetRecipe, what: str) -> str:
    return f"phase {phase.name}: corpus {dataset.corpus!r} {what}"
