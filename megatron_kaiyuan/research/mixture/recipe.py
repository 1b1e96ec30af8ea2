"""`mix.yaml`: which corpora may be mixed, what small runs measure, and what the large run is.

recipe: probe.yaml
corpora: {code: corpora/code_text_document, web: corpora/web_text_document}
held_out: {code: held_out/code_text_document, web: held_out/web_text_document}
objective: {code: 2, web: 1}
runs: 24
tokens: 2M
target_tokens: 100B
max_repeat: 4
largest: {code: 0.5}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from data_tools.curriculum.amounts import read_tokens
from megatron_kaiyuan.config import parse, read_yaml
from megatron_kaiyuan.research.mixture.exposure import LARGEST_EPOCHS
from megatron_kaiyuan.research.queue.request import TASK
from megatron_kaiyuan.research.task_fields import TaskFields

Share = Annotated[float, Field(ge=0, le=1)]


class MixRecipe(TaskFields):
    """What `kaiyuan mix` is to decide. Relative paths start where the command runs."""

    recipe: Annotated[Path, Field(description="training recipe of the small network, with one phase")]
    corpora: Annotated[dict[str, Path], Field(description="name: prefix; what is mixed", min_length=2)]
    held_out: Annotated[dict[str, Path], Field(description="domain: prefix of held-out text", min_length=1)]
    objective: Annotated[
        dict[str, Annotated[float, Field(ge=0)]],
        Field(description="weight of each domain, and of each task as task:NAME; empty: all alike"),
    ] = {}
    runs: Annotated[int, Field(ge=3, description="small runs, each on a mixture of its own")]
    tokens: Annotated[int, Field(description="tokens of a small run")]
    target_tokens: Annotated[int, Field(description="tokens of the large run, or of its phase")]
    max_repeat: Annotated[float, Field(ge=1, le=LARGEST_EPOCHS, description="most passes over a corpus")] = 4.0
    smallest: Annotated[dict[str, Share], Field(description="lowest share of a corpus")] = {}
    largest: Annotated[dict[str, Share], Field(description="highest share of a corpus")] = {}
    confirm: Annotated[
        int, Field(ge=0, description="pairs of runs on the best mixture and the corpora's own shares")
    ] = 3
    level: Annotated[float, Field(gt=0.5, lt=1, description="of intervals")] = 0.9
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of the mixtures that are drawn")] = 1234

    @field_validator("tokens", "target_tokens", mode="before")
    @classmethod
    def _check_tokens(cls, value: Any) -> Any:
        tokens = read_tokens(value)
        if tokens == "all":
            raise ValueError("write a number of tokens, as 2M or 100B")
        return tokens

    @model_validator(mode="after")
    def _check_names(self) -> MixRecipe:
        if taken := [domain for domain in self.held_out if domain.startswith(TASK)]:
            raise ValueError(f"held_out {taken[0]!r}: {TASK!r} stands before names of tasks; rename the domain")
        for field, names, known in (
            ("objective", self.objective, self.measures),
            ("smallest", self.smallest, self.corpora),
            ("largest", self.largest, self.corpora),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"{field}: {unknown[0]!r} is none of {', '.join(known)}")
        if self.objective and not any(self.objective.values()):
            raise ValueError("objective: every weight is 0; give a domain a weight")
        if reversed_ := [name for name in self.smallest if self.smallest[name] > self.largest.get(name, 1)]:
            raise ValueError(f"smallest: {reversed_[0]} is above its largest share")
        if sum(self.smallest.values()) > 1:
            raise ValueError(f"smallest: the shares sum to {sum(self.smallest.values()):g}, above 1")
        if self.tokens > self.target_tokens:
            raise ValueError(
                f"tokens: a small run of {self.tokens:,} is larger than the target, {self.target_tokens:,}"
            )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """`objective`, all measures alike where it is empty."""
        return self.objective or dict.fromkeys(self.measures, 1.0)

    @property
    def measures(self) -> list[str]:
        """Domains, and tasks as `task:NAME`."""
        return [*self.held_out, *self.task_measures]


def load_mix(path: Path, overrides: Sequence[str] = ()) -> MixRecipe:
    """Read a recipe.

    Raises:
        UserError: the file, a field or an override is wrong; the message names it.
    """
    return parse(MixRecipe, read_yaml(path, overrides), source=str(path))
