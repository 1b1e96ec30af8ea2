"""Fields in which runs are not alike: of their configurations, and of machine and software."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_kaiyuan.compare.runs import Run
from megatron_kaiyuan.config.compare import AtResume, at_resume, flatten
from megatron_kaiyuan.errors import excerpt

_MISSING = object()
# What a field means for a comparison, by what its change means for a run that is resumed.
_MEANINGS = {
    AtResume.ANOTHER_RUN: "another network, or other numbers",
    AtResume.FIRST_START: "another start",
    AtResume.TAKEN: "other steps",
    AtResume.NO_EFFECT: "no result: how it is computed, recorded and saved",
    AtResume.NOT_COMPARED: "another start",
}
_LONGEST = 120
_SEED = "train.seed"


@dataclass(frozen=True)
class FieldDifference:
    """A field that is not the same in all runs.

    Attributes:
        meaning: what the field changes, "" where nothing is known of it.
        values: by run; None also where a run has no such field.
    """

    field: str
    meaning: str
    values: list[Any]

    def groups(self, names: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Each value as text, with the names of the runs that have it."""
        found: dict[str, list[str]] = {}
        for name, value in zip(names, self.values, strict=True):
            found.setdefault("–" if value is None else excerpt(value, _LONGEST), []).append(name)
        return list(found.items())


def configuration_differences(runs: Sequence[Run]) -> list[FieldDifference]:
    """Fields of the resolved configurations that differ; runs without a readable one count as having none."""
    flat = [{} if run.config is None else flatten(run.config) for run in runs]
    for of_run in flat:
        of_run.pop("run_dir", None)
    found = []
    for field, values in _different(flat):
        if _is_path_of_phase(field) and len({run.order for run in runs}) == 1:
            # The same phases in another place.
            continue
        found.append(FieldDifference(field, _MEANINGS[at_resume(field)], values))
    return found


def environment_differences(runs: Sequence[Run]) -> list[FieldDifference]:
    """What the newest starts say of machine and software, where they do not say the same."""
    return [FieldDifference(field, "", values) for field, values in _different([run.facts for run in runs])]


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Runs, by number, that differ in `train.seed` and in nothing else that changes a result."""
    groups: dict[str, list[int]] = {}
    seeds: dict[str, set[Any]] = {}
    for number, run in enumerate(runs):
        if run.config is not None:
            flat = flatten(run.config)
            seed = flat.pop(_SEED, None)
            kept = {field: value for field, value in flat.items() if _changes_results(field)}
            recipe = repr((sorted(kept.items()), run.order))
            groups.setdefault(recipe, []).append(number)
            seeds.setdefault(recipe, set()).add(seed)
    return [group for recipe, group in groups.items() if len(seeds[recipe]) > 1]


def _changes_results(field: str) -> bool:
    return field == "init_from" or at_resume(field) not in (AtResume.NO_EFFECT, AtResume.NOT_COMPARED)


def _different(of_runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    found = []
    for field in dict.fromkeys(name for one in of_runs for name in one):
        values = [one.get(field, _MISSING) for one in of_runs]
        if any(value != values[0] for value in values[1:]):
            found.append((field, [None if value is _MISSING else value for value in values]))
    return found


def _is_path_of_phase(field: str) -> bool:
    return field.startswith("data.phases.") and field.endswith(".path")
