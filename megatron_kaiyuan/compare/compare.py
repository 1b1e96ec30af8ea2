"""`kaiyuan compare`: read the runs, compare them, and say it as text, as a record for programs, or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.compare.differences import FieldDifference, configuration_differences, environment_differences
from megatron_kaiyuan.compare.measures import Measure, Window, common_window, final_measures
from megatron_kaiyuan.compare.runs import Run, read_runs

CAUTION = (
    "Intervals (95 %) are of each run's own noise: of steps by a moving-block bootstrap, of tasks by their standard "
    "error. Another seed of the same recipe may differ by more: name runs that differ in the seed alone too, and a "
    "difference that is no larger than theirs counts for nothing."
)
TIME = (
    "Wall clock without pauses: from each start to the last line it wrote, with building, validation, checkpoints and "
    "steps that a restart or a rollback made void; the time between is left out."
)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        window: the tokens that final measures are means over.
        notes: about all of them; each run has its own besides.
    """

    runs: list[Run]
    window: Window
    configuration: list[FieldDifference]
    environment: list[FieldDifference]
    measures: list[Measure]
    notes: list[str]

    def all_notes(self) -> list[str]:
        """Notes about all runs, then those of runs, each once with the names of its runs."""
        of_runs: dict[str, list[str]] = {}
        for run in self.runs:
            for note in run.notes:
                of_runs.setdefault(note, []).append(run.name)
        return [*self.notes, *(f"{', '.join(names)}: {note}" for note, names in of_runs.items())]


def compare_runs(folders: Sequence[Path], last_tokens: int | None = None) -> Comparison:
    """Compare runs with the first one, finished or being written.

    Args:
        last_tokens: final measures are means over so many tokens before the end of the shortest run; None: a tenth of
            what that has trained on.

    Raises:
        UserError: fewer than 2 or more than 20 runs, or one that is none or has no step yet.
    """
    runs, notes = read_runs(folders)
    window = common_window(runs, last_tokens)
    if any(run.order != runs[0].order or run.order is None for run in runs):
        notes.append("not all runs saw the same tokens in the same order: losses of those are compared without pairs")
    if len({run.end for run in runs}) > 1:
        ends = ", ".join(f"{run.name} {run.end:,}" for run in runs)
        notes.append(f"compared where the shortest ends, at token {window.end:,}; trained: {ends}")
    return Comparison(
        runs=runs,
        window=window,
        configuration=configuration_differences(runs),
        environment=environment_differences(runs),
        measures=final_measures(runs, window),
        notes=notes,
    )
