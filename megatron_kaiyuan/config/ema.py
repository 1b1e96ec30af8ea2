"""The section `ema`: the average of the weights that a run keeps while it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_kaiyuan.config.section import Section


class EmaConfig(Section):
    """An exponential moving average of the FP32 weights, saved in each checkpoint (`--weights ema` takes it)."""

    decay: Annotated[
        float | None,
        Field(gt=0, lt=1, description="by how much the weight of a step falls with each later step; null: no average"),
    ] = None
    every_steps: Annotated[
        int, Field(gt=0, description="updates from one step that counts to the next; the decay is still one a step")
    ] = 1
    device: Annotated[
        Literal["auto", "cpu"], Field(description="where it lies; auto: beside the optimizer's state; cpu: host memory")
    ] = "auto"
