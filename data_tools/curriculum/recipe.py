"""The order recipe: which documents of which corpora make up each phase, and in which order. One line a dataset.

corpora:
  code: runs/corpora/code_text_document
  wiki: ${oc.env:CORPORA}/wiki_text_document
phases:
  - name: phase_2
    order: curriculum
    seed: 1
    datasets:
      - {corpus: code, score: score, keep: top 0.4}
      - {corpus: wiki, repeat: 2.5}
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from megatron_kaiyuan.config import Section, parse, read_yaml


class Keep(NamedTuple):
    """A filter and its fraction, exact as written."""

    how: Literal["all", "top", "random"]
    fraction: Fraction

    def count(self, documents: int) -> int:
        """Documents that stay of `documents`: fraction * documents, halves rounded up."""
        return math.floor(self.fraction * documents + Fraction(1, 2))


class DatasetRecipe(Section):
    """One dataset of a phase.

    A score orders the dataset in a curriculum phase and selects its top fraction; without one its documents come in
    random order. The report repeats unscored datasets only, and so does a curriculum phase here: copies of a scored
    document have one score and would follow each other closely. In a shuffled phase any dataset may repeat (ours).
    """

    corpus: Annotated[str, Field(description="a name under `corpora`")]
    score: Annotated[str | None, Field(description="column of the corpus's .meta.parquet; higher is better")] = None
    keep: Annotated[str, Field(description="all, `top F` by score, or `random F`; F in (0, 1]")] = "all"
    repeat: Annotated[float, Field(ge=1, le=10_000, description="copies; a fraction adds one with that chance")] = 1.0
    optional: Annotated[bool, Field(description="leave the dataset out when its corpus does not exist")] = False

    @field_validator("keep")
    @classmethod
    def _check_keep(cls, text: str) -> str:
        parse_keep(text)
        return text

    @model_validator(mode="after")
    def _check_score(self) -> DatasetRecipe:
        if self.score is None and parse_keep(self.keep).how == "top":
            raise ValueError(f"keep {self.keep!r} of corpus {self.corpus!r} needs a score: name its column")
        return self


class PhaseRecipe(Section):
    """One phase: a folder of this name."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$", description="letters, digits, '_', '-' and '.'")]
    order: Literal["shuffle", "curriculum"]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1234
    perturb: Annotated[float, Field(ge=0, allow_inf_nan=False, description="width of the random shift, in rows")] = 0.0
    datasets: Annotated[list[DatasetRecipe], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_order(self) -> PhaseRecipe:
        names = [dataset.corpus for dataset in self.datasets]
        if repeated := _first_repeated(names):
            raise ValueError(f"corpus {repeated!r} is listed twice; a phase takes a corpus once")
        if self.order == "shuffle" and self.perturb:
            raise ValueError(f"perturb {self.perturb:g} has no effect in a shuffled phase; remove it")
        for dataset in self.datasets:
            if self.order == "curriculum" and dataset.score and dataset.repeat != 1:
                raise ValueError(
                    f"corpus {dataset.corpus!r} has a score and repeat {dataset.repeat:g}: its copies would follow "
                    "each other; remove one of the two, or take top fractions of it in several phases"
                )
        return self


class OrderRecipe(Section):
    """Corpora by name and the phases made of them. Relative prefixes start at the current directory."""

    corpora: Annotated[dict[str, Path], Field(min_length=1, description="name: prefix of .bin, .idx, .meta.parquet")]
    phases: Annotated[list[PhaseRecipe], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_names(self) -> OrderRecipe:
        if repeated := _first_repeated([phase.name for phase in self.phases]):
            raise ValueError(f"two phases are named {repeated!r}")
        for phase in self.phases:
            for dataset in phase.datasets:
                if dataset.corpus not in self.corpora:
                    hint = nearest(dataset.corpus, self.corpora)
                    raise ValueError(f"phase {phase.name!r}: unknown corpus {dataset.corpus!r}; {hint}")
        return self


def load_order(recipe: Path, overrides: Sequence[str] = ()) -> OrderRecipe:
    """Read an order recipe; overrides as `corpora.code=PATH` or `phases[0].seed=7`.

    Raises:
        UserError: the file, a field or an override is wrong; the message names it.
    """
    return parse(OrderRecipe, read_yaml(recipe, overrides), source=str(recipe))


def parse_keep(text: str) -> Keep:
    """`all`, `top F` or `random F`. The fraction is read as a decimal, so that 0.29 of 50 is 14.5, not a little less.

    Raises:
        ValueError: it is none of these, or F is outside (0, 1].
    """
    how, _, number = text.strip().partition(" ")
    if how == "all" and not number:
        return Keep("all", Fraction(1))
    if how not in ("top", "random"):
        raise ValueError(f"keep is {text!r}; write all, top 0.4 or random 0.4")
    try:
        fraction = Fraction(number.strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"keep is {text!r}; {number!r} is no number, write for example {how} 0.4") from None
    if not 0 < fraction <= 1:
        raise ValueError(f"keep is {text!r}; the fraction must be above 0 and at most 1")
    return Keep(how, fraction)  # type: ignore[arg-type]


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for at, name in enumerate(names) if name in names[:at]), None)
