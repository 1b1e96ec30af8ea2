"""The order recipe: which documents of which corpora make up each phase, and in which order. One line a dataset.

root: ${oc.env:CORPORA,corpora}
corpora:
  code: code_text_document
  wiki: wiki_text_document
phases:
  - name: phase_2
    order: curriculum
    seed: 1
    tokens: 2.5e9
    datasets:
      - {corpus: code, score: score, keep: top 0.4}
      - {corpus: wiki, repeat: 2.5}

Proportions are set in one of two ways. By what `keep` and `repeat` leave, as the report does: a dataset weighs what it
holds. Or by `share`, for every dataset of the phase: its part of the tokens, from which its repetition follows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_tools.curriculum.amounts import read_copies, read_share, read_tokens
from data_tools.curriculum.keep import Keep, parse_keep
from megatron_kaiyuan.config import Section, parse, read_yaml

# Beyond about four passes repeated text is worth much less than new text (Muennighoff et al. 2023, arXiv 2305.16264).
WORTHWHILE_REPEATS = 4.0
MOST_COPIES = 500
SHARE_TOLERANCE = Fraction(1, 10**6)


class DatasetRecipe(Section):
    """One dataset of a phase.

    A score orders the dataset in a curriculum phase and selects its top fraction or window; without one its documents
    come in random order. The report repeats scored datasets through nested top fractions of several phases and only
    unscored ones inside a phase: copies of a scored document have one score and follow each other closely.
    """

    corpus: Annotated[str, Field(description="a name under `corpora`")]
    score: Annotated[
        str | None,
        Field(description="column of the corpus's .meta.parquet, higher is better; null: documents in random order"),
    ] = None
    keep: Annotated[
        str,
        Field(
            description="`all`; `top 0.3`; `random 0.2`; `window 0.30-0.32`, a band counted from the best score; `top` "
            "and `window` also `of tokens`"
        ),
    ] = "all"
    repeat: Annotated[float, Field(description="copies; 2.5 is two, and a third with a chance of one half")] = 1.0
    share: Annotated[
        float | None,
        Field(description="part of the phase's tokens, for every dataset or none; `repeat` then follows"),
    ] = None
    max_repeat: Annotated[
        float | None, Field(description="most copies that its share may ask for; null: the phase's")
    ] = None
    missing_scores: Annotated[
        Literal["refuse", "drop", "lowest"],
        Field(
            description="documents without a score (no such field, null or NaN in the input of `preprocess`, or null "
            "from a scorer): refuse the corpus, drop them before `keep`, or take them as the lowest"
        ),
    ] = "refuse"
    optional: Annotated[bool, Field(description="leave the dataset out when its corpus is empty or absent")] = False

    @model_validator(mode="before")
    @classmethod
    def _check_mapping(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError(f"a dataset is {values!r}; write {{corpus: {values or 'NAME'}, keep: all}}")
        return values

    @field_validator("keep", mode="before")
    @classmethod
    def _check_keep(cls, text: Any) -> Any:
        parse_keep(text)
        return text

    @field_validator("repeat", "max_repeat", mode="before")
    @classmethod
    def _check_copies(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name == "repeat":
            raise ValueError("repeat is empty; write a number of copies or remove it")
        return read_copies(str(info.field_name), value, MOST_COPIES)

    @field_validator("share", mode="before")
    @classmethod
    def _check_share(cls, value: Any) -> Any:
        return read_share(value)

    @model_validator(mode="after")
    def _check_together(self) -> DatasetRecipe:
        who = f"of corpus {self.corpus!r}"
        if self.score is None and self.kept.needs_score:
            raise ValueError(f"keep {self.keep!r} {who} needs a score: name its column, as score: score")
        if self.score is None and self.missing_scores != "refuse":
            raise ValueError(f"missing_scores {self.missing_scores!r} {who} needs a score; remove it or name a score")
        if self.share is not None and self.repeat != 1:
            raise ValueError(f"share {self.share:g} {who} decides how often it repeats; remove repeat {self.repeat:g}")
        if self.max_repeat is not None and self.repeat > self.max_repeat:
            raise ValueError(f"repeat {self.repeat:g} {who} is above its max_repeat {self.max_repeat:g}; raise that")
        return self

    @property
    def kept(self) -> Keep:
        """`keep` as read."""
        return parse_keep(self.keep)


class PhaseRecipe(Section):
    """One phase: a folder of this name.

    `rank_by` says what Algorithm 1 counts when it gives a document its place (report, section 3). `documents`, the
    default, is what the report and its released code do, so the report's recipe gives the report's order. Where length
    goes with score the share of tokens then drifts along the phase: with long good documents a dataset gives more
    tokens at the end than at the start. `tokens` ranks by cumulative tokens, as the report's successor does
    (arXiv 2608.27370): shares of tokens stay level, to within about a document of each dataset. Choose it for a mixture
    that must hold all along.
    """

    name: Annotated[str, Field(description="letters, digits, '_', '-' and '.'")]
    order: Annotated[
        Literal["shuffle", "curriculum"],
        Field(description="curriculum: in every dataset the worst first, the best last, all datasets side by side"),
    ]
    seed: Annotated[int, Field(ge=0, lt=2**63, description="one for several phases nests their top fractions")] = 1234
    tokens: Annotated[
        int | Literal["all"],
        Field(
            description="budget, such as 2.5e9 or 1.2T; all datasets are thinned alike, at random, so that shares and "
            "the range of quality stay"
        ),
    ] = "all"
    rank_by: Annotated[
        Literal["documents", "tokens"], Field(description="what places a document: documents, or cumulative tokens")
    ] = "documents"
    perturb: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="width of a random shift of that place, in what rank_by counts"),
    ] = 0.0
    max_repeat: Annotated[
        float,
        Field(
            description="most copies that a share may ask for",
            # null is the default's.
            json_schema_extra=lambda node: node.update(anyOf=[{"type": node.pop("type")}, {"type": "null"}]),
        ),
    ] = WORTHWHILE_REPEATS
    pack: Annotated[
        int | None, Field(ge=2, lt=2**31, description="sequence length of best-fit packing; null: one stream")
    ] = None
    datasets: Annotated[
        list[DatasetRecipe], Field(description="what the phase takes, a corpus once", json_schema_extra={"minItems": 1})
    ]

    @model_validator(mode="before")
    @classmethod
    def _check_mapping(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError(f"a phase is {values!r}; begin it with - name: phase_1, its fields below")
        return values

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, name: Any) -> Any:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"name is {name!r}; a folder gets it: write letters, digits, '_', '-' and '.' only")
        return name

    @field_validator("tokens", mode="before")
    @classmethod
    def _check_tokens(cls, value: Any) -> Any:
        return read_tokens(value)

    @field_validator("max_repeat", mode="before")
    @classmethod
    def _check_copies(cls, value: Any) -> Any:
        return WORTHWHILE_REPEATS if value is None else read_copies("max_repeat", value, MOST_COPIES)

    @field_validator("datasets", mode="before")
    @classmethod
    def _check_datasets(cls, value: Any) -> Any:
        return _listed("datasets", value, "- {corpus: NAME, keep: all}")

    @model_validator(mode="after")
    def _check_order(self) -> PhaseRecipe:
        if repeated := _first_repeated([dataset.corpus for dataset in self.datasets]):
            raise ValueError(
                f"corpus {repeated!r} is listed twice; a phase takes a corpus once "
                "(under `corpora` it may have a second name)"
            )
        if self.order == "shuffle" and self.perturb:
            raise ValueError(f"perturb {self.perturb:g} has no effect in a shuffled phase; remove it")
        if self.order == "shuffle" and self.rank_by == "tokens":
            raise ValueError("rank_by tokens has no effect in a shuffled phase; remove it")
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> PhaseRecipe:
        without = [dataset.corpus for dataset in self.datasets if dataset.share is None]
        if len(without) == len(self.datasets):
            return self
        if without:
            raise ValueError(f"corpus {without[0]!r} has no share and others have; give every dataset one, or none")
        total = sum((exactly(dataset.share or 0) for dataset in self.datasets), Fraction(0))
        if abs(total - 1) > SHARE_TOLERANCE:
            shares = " + ".join(f"{dataset.share:g}" for dataset in self.datasets)
            raise ValueError(f"shares must sum to 1; {shares} is {float(total):.7g}")
        return self


class OrderRecipe(Section):
    """Corpora by name and the phases made of them. Relative prefixes start at `root`, by default where one stands."""

    root: Annotated[Path, Field(description="folder where relative prefixes start")] = Path()
    corpora: Annotated[
        dict[str, Path],
        Field(description="name: prefix of .bin, .idx, .meta.parquet", json_schema_extra={"minProperties": 1}),
    ]
    phases: Annotated[list[PhaseRecipe], Field(description="one folder each", json_schema_extra={"minItems": 1})]

    @field_validator("corpora", mode="before")
    @classmethod
    def _check_corpora(cls, corpora: Any) -> Any:
        if not isinstance(corpora, dict) or not corpora:
            raise ValueError(f"corpora is {corpora!r}; write one line each, as code: runs/corpora/code_text_document")
        for name, prefix in corpora.items():
            if not isinstance(prefix, str | Path) or not str(prefix):
                raise ValueError(f"{name} is {prefix!r}; write the prefix of its files, as runs/corpora/{name}")
        return corpora

    @field_validator("corpora")
    @classmethod
    def _check_prefixes(cls, corpora: dict[str, Path]) -> dict[str, Path]:
        for name, prefix in corpora.items():
            if prefix.suffix in (".bin", ".idx"):
                raise ValueError(f"{name} is {prefix}; write the prefix alone: {prefix.with_suffix('')}")
        return corpora

    @field_validator("phases", mode="before")
    @classmethod
    def _check_phases(cls, value: Any) -> Any:
        return _listed("phases", value, "- name: phase_1")

    @model_validator(mode="after")
    def _check_names(self) -> OrderRecipe:
        if repeated := _first_repeated([phase.name for phase in self.phases]):
            raise ValueError(f"two phases are named {repeated!r}; each needs a name of its own")
        for phase in self.phases:
            for dataset in phase.datasets:
                if dataset.corpus not in self.corpora:
                    hint = nearest(dataset.corpus, self.corpora)
                    raise ValueError(f"phase {phase.name!r}: unknown corpus {dataset.corpus!r}; {hint}")
        return self

    @property
    def prefixes(self) -> dict[str, Path]:
        """Where the corpora are, by name."""
        return {name: self.root / prefix for name, prefix in self.corpora.items()}


def load_order(recipe: Path, overrides: Sequence[str] = ()) -> OrderRecipe:
    """Read an order recipe; overrides as `corpora.code=PATH` or `phases[0].seed=7`.

    Raises:
        UserError: the file, a field or an override is wrong; the message names it.
    """
    return parse(OrderRecipe, read_yaml(recipe, overrides), source=str(recipe))


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"


def exactly(number: float) -> Fraction:
    """A number as it was written: 0.3 is 3/10, not the float beside it."""
    return Fraction(repr(number))


def _listed(field: str, value: Any, example: str) -> Any:
    if not isinstance(value, list) or not value:
        state = "empty" if not value else f"a {type(value).__name__}, not a list"
        raise ValueError(f"{field} is {state}; begin each with a dash, as {example}")
    return value


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for at, name in enumerate(names) if name in names[:at]), None)
