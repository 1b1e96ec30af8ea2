"""What the user asks for, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.dedup.keepers import Rules
from data_tools.dedup.signatures import Recipe, kaiyuan_preset
from data_tools.reading.shard import MOST_DOCUMENTS
from megatron_kaiyuan.errors import UserError, require_between

_MAX_CLUSTER = 10_000


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        inputs: as `--input` has them.
        recipe: what is a near-duplicate.
        rules: who of a cluster stays.
        score: the column that says which documents are better.
        exact_only: look for equal texts only.
        columns: write columns beside the documents, not these again.
        against: indexes of earlier runs, whose documents stay.
        index: where to leave an index of this run.
        max_removed: largest share of a dataset that may go.
    """

    inputs: tuple[str, ...]
    output: Path
    recipe: Recipe = field(default_factory=Recipe)
    rules: Rules = field(default_factory=Rules)
    score: str | None = None
    exact_only: bool = False
    columns: bool = False
    against: tuple[Path, ...] = ()
    index: Path | None = None
    max_removed: float = 0.5
    max_bad_rows: int = 0
    task_bytes: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_removed <= 1:
            raise UserError(f"--max-removed {self.max_removed:g}: is a share of a dataset; give 0 to 1")
        _refuse_shared_places(self.output, self.index, self.against)
        require_between("--max-cluster", self.rules.max_cluster, 0, MOST_DOCUMENTS)
        require_between("--max-bad-rows", self.max_bad_rows, 0, MOST_DOCUMENTS)
        if self.rules.direct and not self.recipe.verify:
            raise UserError("--keeper: needs the check of pairs; leave out --no-verify (the preset kaiyuan has it)")

    @property
    def is_preset(self) -> bool:
        return self.recipe.preset == "kaiyuan"


def _refuse_shared_places(output: Path, index: Path | None, against: Sequence[Path]) -> None:
    """Refuse folders of which one is another, or lies in it: each is written and replaced as a whole.

    Raises:
        UserError: naming two of them.
    """
    places = [("--output", output), *([("--index", index)] if index else [])]
    others = [("--against", folder) for folder in against]
    for number, (option, path) in enumerate(places):
        here = Path(os.path.realpath(path))
        for other, folder in (*places[number + 1 :], *others):
            there = Path(os.path.realpath(folder))
            if here == there or here in there.parents or there in here.parents:
                is_at = "is the folder of" if here == there else "lies in" if there in here.parents else "lies around"
                raise UserError(
                    f"{option} {path}: {is_at} {other} {folder}, and each is replaced as a whole; name another folder"
                )


def make_recipe(preset: str | None, **given: Any) -> Recipe:
    """The recipe of a preset with what else was given (None: not given).

    Raises:
        UserError: a value is out of range.
    """
    if preset not in (None, "default", "kaiyuan"):
        raise UserError(f"--preset {preset}: is not known; use default or kaiyuan")
    recipe = kaiyuan_preset() if preset == "kaiyuan" else Recipe()
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def default_max_cluster(recipe: Recipe) -> int:
    """The released pipeline knows no limit."""
    return 0 if recipe.preset == "kaiyuan" else _MAX_CLUSTER
