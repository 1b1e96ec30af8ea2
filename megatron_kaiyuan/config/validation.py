"""The section `validation`: held-out corpora that the network predicts while it trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from megatron_kaiyuan.config.section import Section

# What can be a part of a metric's name.
_NAME = re.compile(r"[\w.-]{1,100}")


class ValidationConfig(Section):
    """Held-out loss by domain while a run trains: columns of its metrics.

    The same tokens each time, whatever the ranks. Training is the same to the bit with validation and without.
    """

    corpora: Annotated[
        dict[str, Path],
        Field(max_length=100, description="prefixes of held-out corpora, by domain; none: no validation"),
    ] = {}
    weights: Annotated[
        dict[str, Annotated[float, Field(gt=0)]],
        Field(description="of domains in validation/loss, which is their weighted mean; default: 1 each"),
    ] = {}
    every_steps: Annotated[int | None, Field(gt=0, description="and after the last step")] = None
    every_tokens: Annotated[
        int | None,
        Field(gt=0, description="instead of every_steps; both null: at multiples of checkpoint.save_every_steps"),
    ] = None
    tokens: Annotated[
        int | None,
        Field(gt=0, description="to predict each time, in equal shares for the corpora; null: all of them"),
    ] = 500_000

    @model_validator(mode="after")
    def _check_together(self) -> ValidationConfig:
        if wrong := [name for name in self.corpora if not _NAME.fullmatch(name)]:
            raise ValueError(f"validation.corpora: {wrong[0]!r} is no name; write letters, digits, '.', '-' and '_'")
        if unknown := sorted(self.weights.keys() - self.corpora.keys()):
            raise ValueError(f"validation.weights names {unknown[0]!r}, which is none of validation.corpora")
        if self.every_steps is not None and self.every_tokens is not None:
            raise ValueError("validation.every_steps and every_tokens are both set; leave one of them out")
        if self.tokens is not None and self.tokens < len(self.corpora):
            raise ValueError(
                f"validation.tokens {self.tokens:,} leaves none for some of the {len(self.corpora)} corpora; raise it"
            )
        return self
