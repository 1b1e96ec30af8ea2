"""Many layouts of one network that a team has measured, beside the plan: see `benchmarks/published_runs.py`.

    python -m benchmarks.published_runs

The share of a node's cards that groups get which send at once, `links.SHARED_CARDS`, comes from these times: of a few
shares the one at which planned over measured scatters least.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from scipy.stats import spearmanr

from benchmarks.published_data import Run, measured_layouts, name_of, print_table, recipe_of
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning import links

SHARES = (1.0, 0.5, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Choice:
    """Of a network on so many devices what the plan ranks first among the layouts that were measured.

    Attributes:
        chosen: measured seconds of a step in that layout.
        best: the fewest measured.
        correlation: Spearman's, of planned and measured seconds.
        errors: logarithms of planned over measured seconds.
    """

    name: str
    layouts: int
    first: str
    chosen: float
    fastest: str
    best: float
    correlation: float
    errors: list[float]


def measured_runs() -> dict[str, list[tuple[Run, float]]]:
    """By network and number of devices, with seconds of a step; a layout that our recipes refuse is left out."""
    groups: dict[str, list[tuple[Run, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for published, seconds in measured_layouts():
            try:
                run = Run(published, recipe_of(published, Path(folder)))
            except UserError:
                continue
            key = f"{published.name} on {published.gpus} x {published.device}"
            groups.setdefault(key, []).append((run, seconds))
    return groups


def choices(groups: dict[str, list[tuple[Run, float]]], shared_cards: float = links.SHARED_CARDS) -> list[Choice]:
    found = []
    with patch.object(links, "SHARED_CARDS", shared_cards):
        for key, runs in groups.items():
            rows = []
            for run, seconds in runs:
                planned = run.published.batch * run.published.seq_length / run.published.gpus
                name = f"{name_of(run.recipe)} micro {run.published.micro_batch}"
                rows.append((planned / run.planned(run.device.assumed_mfu), seconds, name))
            first, best = min(rows), min(rows, key=lambda one: one[1])
            planned_seconds, taken, _ = zip(*rows, strict=True)
            correlation = float(spearmanr(planned_seconds, taken).statistic) if len(rows) > 2 else math.nan
            errors = [math.log(planned / seconds) for planned, seconds, _ in rows]
            found.append(Choice(key, len(rows), first[2], first[1], best[2], best[1], correlation, errors))
    return found


def scatter(found: Iterable[Choice]) -> float:
    """Standard deviation of the logarithm of planned over measured seconds, over all layouts."""
    return statistics.pstdev([error for choice in found for error in choice.errors])


def chosen_without_itself(groups: dict[str, list[tuple[Run, float]]]) -> list[tuple[float, float]]:
    """Of each network the share at which the other networks' times scatter least, and first over fastest with it."""
    by_share = {share: choices(groups, share) for share in SHARES}
    found = []
    for index in range(len(groups)):
        others = {share: scatter(all_of[:index] + all_of[index + 1 :]) for share, all_of in by_share.items()}
        share = min(others, key=others.__getitem__)
        choice = by_share[share][index]
        found.append((share, choice.chosen / choice.best))
    return found


def print_choices() -> None:
    groups = measured_runs()
    rows = []
    for choice, (share, left_out) in zip(choices(groups), chosen_without_itself(groups), strict=True):
        row = [choice.name, str(choice.layouts), choice.first, f"{choice.chosen:.1f}", choice.fastest]
        row += [f"{choice.best:.1f}", f"{choice.chosen / choice.best:.3f}", f"{choice.correlation:.2f}"]
        rows.append([*row, f"{share:g}: {left_out:.3f}"])
    head = ["network", "layouts", "plan's first", "measured s", "fastest", "measured s", "first/fastest"]
    print_table([*head, "rank correlation", "share of cards from the others"], rows)
