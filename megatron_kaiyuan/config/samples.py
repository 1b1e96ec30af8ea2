"""The section `samples`: texts that the network writes while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from megatron_kaiyuan.config.section import Section


class SamplesConfig(Section):
    """Fixed prompts that the network continues while it trains, for the events of the run and its report.

    Options of sampling have transformers' names. Training is the same to the bit with samples and without.
    """

    prompts: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=10_000)]],
        Field(max_length=100, description="texts to continue; none: no samples"),
    ] = []
    tokenizer: Annotated[
        Path | None,
        Field(description="folder with the tokenizer.json that made the corpora; prompts need it"),
    ] = None
    every_steps: Annotated[
        int | None,
        Field(gt=0, description="null: with scheduled checkpoints, at step 0 and at the last step"),
    ] = None
    max_new_tokens: Annotated[
        int, Field(gt=0, le=10_000, description="of each text; each token takes a forward pass, while the others wait")
    ] = 64
    do_sample: Annotated[bool, Field(description="draw tokens; else the most probable one is taken")] = False
    temperature: Annotated[float | None, Field(gt=0, description="of drawn tokens; null: 1")] = None
    top_p: Annotated[
        float | None, Field(gt=0, le=1, description="draw among tokens that are so probable together; null: 1")
    ] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, description="above 1: fewer tokens again; null: 1")] = None
    seed: Annotated[int, Field(ge=0, description="of drawn tokens, the same for each prompt and step")] = 0

    @model_validator(mode="after")
    def _check_together(self) -> SamplesConfig:
        if self.prompts and self.tokenizer is None:
            raise ValueError("samples.prompts need samples.tokenizer, the folder with their tokenizer.json")
        for name in ("temperature", "top_p"):
            if getattr(self, name) is not None and not self.do_sample:
                raise ValueError(f"samples.{name} is for drawn tokens; set samples.do_sample, or leave it out")
        return self
