"""What the user asks for, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.dedup.keepers import Rules
from data_tools.dedup.signatures import Recipe, kaiyuan_preset
from megatron_kaiyuan.errors import UserError, require_between

_MAX_CLUSTER = 10_000
# Of a number of documents.
_MOST_DOCUMENTS = 10**15


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
        if self.index and self.output.absolute() in (self.index.absolute(), *self.index.absolute().parents):
            raise UserError(
                f"--index {self.index}: lies in --output, which is replaced as a whole; name another folder"
            )
        require_between("--max-cluster", self.rules.max_cluster, 0, _MOST_DOCUMENTS)
        require_between("--max-bad-rows", self.max_bad_rows, 0, _MOST_DOCUMENTS)
        if self.rules.direct and not self.recipe.verify:
            raise UserError("--keeper: needs the check of pairs; leave out --no-verify (the preset kaiyuan has it)")

    @property
    def is_preset(self) -> bool:
        return self.recipe.preset == "kaiyuan"


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
