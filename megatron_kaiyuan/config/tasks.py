"""The section `tasks`: tasks of lm-eval that the network does while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from megatron_kaiyuan.config.section import Section


class TasksConfig(Section):
    """Tasks of lm-eval while the run trains, also with its last step; their metrics are `tasks/TASK_METRIC`.

    The data-parallel ranks share the texts. Training is the same to the bit with tasks and without.
    """

    names: Annotated[
        list[Annotated[str, Field(pattern=r"^\w[\w.-]*$")]],
        Field(max_length=100, description="tasks or groups of lm-eval, or of include_path; none: no tasks"),
    ] = []
    tokenizer: Annotated[
        Path | None,
        Field(description="folder with the tokenizer.json that made the corpora; tasks need it"),
    ] = None
    include_path: Annotated[
        Path | None, Field(description="folder with YAML files of tasks besides lm-eval's own, read without a network")
    ] = None
    every_steps: Annotated[
        int | None, Field(gt=0, description="null, with every_tokens null too: with scheduled checkpoints")
    ] = None
    every_tokens: Annotated[int | None, Field(gt=0, description="after the step that passes a multiple of it")] = None
    limit: Annotated[int | None, Field(gt=0, description="documents of each task, its first ones; null: all")] = 200
    num_fewshot: Annotated[
        int | None, Field(ge=0, description="examples before each question; null: as each task says")
    ] = None
    batch_size: Annotated[
        int | None, Field(gt=0, description="texts at a time; null: as many as 128 MB of FP32 logits are")
    ] = None

    @model_validator(mode="after")
    def _check_together(self) -> TasksConfig:
        if self.names and self.tokenizer is None:
            raise ValueError("tasks.names need tasks.tokenizer, the folder with the corpora's tokenizer.json")
        if self.every_steps is not None and self.every_tokens is not None:
            raise ValueError("tasks.every_steps and tasks.every_tokens: set one of them")
        return self
