"""The section `faults`: what happens when a step goes wrong, and when a rank does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_kaiyuan.config.section import Section


class FaultsConfig(Section):
    """What happens when a step goes wrong, and when a rank does.

    A step is bad when loss or gradient are not finite, when FP16 gradients overflow at the smallest loss scale, and
    when the loss stands out from the window. Its update is never applied. `skip` continues with the next batch;
    `rollback` goes back to the newest whole checkpoint and leaves out batches that end with the bad one; `stop` ends
    the run.
    """

    on_bad_step: Annotated[Literal["skip", "rollback", "stop"], Field(description="see above")] = "skip"
    spike_zscore: Annotated[
        float | None, Field(gt=0, description="robust standard deviations above the window's median; null: no check")
    ] = 12.0
    spike_window: Annotated[int, Field(ge=8, description="good steps of this phase that the loss is compared with")] = (
        128
    )
    max_skips_in_a_row: Annotated[int, Field(gt=0, description="with skip: one more ends the run")] = 10
    max_rollbacks: Annotated[int, Field(gt=0, description="to one checkpoint; one more ends the run")] = 3
    rollback_batches: Annotated[
        int, Field(gt=0, description="left out by a rollback, the bad one last; none from before the checkpoint")
    ] = 100
    hang_timeout_seconds: Annotated[
        float | None,
        Field(
            gt=0,
            description="no rank may take longer from one step or save to the next; null: 300, and 900 on devices that "
            "compile operators when first called, but at most half of parallel.timeout_minutes",
        ),
    ] = None
