"""The section `checkpoint`: when checkpoints are written and which stay."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from megatron_kaiyuan.config.section import Section


class CheckpointConfig(Section):
    """When checkpoints are written and which stay.

    A step is also saved on SIGTERM, SIGHUP and SIGUSR1, which end the run, and after `touch RUN_DIR/save_now`.
    """

    save_every_steps: Annotated[int, Field(gt=0, description="steps from one scheduled checkpoint to the next")] = 1000
    save_every_minutes: Annotated[float | None, Field(gt=0, description="by the clock of rank 0")] = None
    asynchronous: Annotated[bool, Field(description="write while training continues")] = True
    keep_last: Annotated[int, Field(ge=2, description="step 0 is kept besides")] = 10
    keep_every_steps: Annotated[int | None, Field(gt=0, description="multiples of it stay for ever")] = None
    keep_every_tokens: Annotated[
        int | None, Field(gt=0, description="the first checkpoint at or after each multiple stays for ever")
    ] = None
    preempt_deadline_seconds: Annotated[
        float, Field(gt=0, description="after SIGTERM, SIGHUP or SIGUSR1: time to finish the step and to save it")
    ] = 100.0
    strict: Annotated[bool, Field(description="a damaged checkpoint ends the run instead of an older one's use")] = (
        False
    )
