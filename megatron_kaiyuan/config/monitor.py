"""The section `monitor`: what a run records, and whom it notifies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from megatron_kaiyuan.config.section import Section

NotifyEvent = Literal["start", "save", "bad_step", "hang", "stop", "end"]


class MonitorConfig(Section):
    """What is recorded; `metrics.jsonl` always is."""

    log_every_steps: Annotated[
        int, Field(gt=0, description="steps from one row of metrics, and line on the terminal, to the next")
    ] = 10
    peak_tflops: Annotated[
        float | None,
        Field(
            gt=0,
            description="that mfu divides by: of one device in the run's precision, dense, 1e12 FLOP/s; null: as "
            "platform/datasheets.py has it for the device that is found, and no mfu for others",
        ),
    ] = None
    profile_steps: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="how many steps of rank 0, after the first 3 of each job, torch's profiler records, for "
            "RUN_DIR/profile; 0: none; they take longer",
        ),
    ] = 0
    activations_every_steps: Annotated[
        int, Field(ge=0, description="size of activations, gradients and updates by layer; 0: never")
    ] = 100
    headroom_warning_bits: Annotated[
        float, Field(ge=0, description="FP16: warn when an activation comes closer to 65,504; 3: above 8,188")
    ] = 3.0
    overflow_capsules: Annotated[
        int,
        Field(
            ge=0,
            description="a step that overflowed is run again to name the first tensor beyond the range, and for "
            "`kaiyuan replay` RUN_DIR/overflow keeps so many at most, the first ones; 0: no step is run again",
        ),
    ] = 3
    overflow_capsule_scale: Annotated[
        float,
        Field(
            ge=0,
            description="FP16: gradients that overflow at a larger loss scale are expected of the scaler, named and "
            "not kept; an overflow in a forward pass, or at the smallest scale, always may be",
        ),
    ] = 1024.0
    notify_command: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="a shell's command that rank 0 has run for each event, which is JSON on its standard input and "
            "in KAIYUAN_EVENT, KAIYUAN_TEXT, KAIYUAN_STEP, KAIYUAN_RUN_DIR, KAIYUAN_HOST; never waited for; null: none",
        ),
    ] = None
    notify_events: Annotated[
        list[NotifyEvent], Field(description="the events that notify_command is run for; end: also of a job that died")
    ] = ["start", "save", "bad_step", "hang", "stop", "end"]
    notify_timeout_seconds: Annotated[
        float, Field(gt=0, le=600, description="after so long a notify_command is killed")
    ] = 10.0
    prometheus_file: Annotated[
        Path | None,
        Field(description="NAME.prom in the textfile folder of rank 0's node exporter, rewritten with each row"),
    ] = None
    tensorboard: Annotated[bool, Field(description="event files in RUN_DIR/tensorboard")] = False
    wandb: Annotated[bool, Field(description="Weights & Biases, offline without an account")] = False
    wandb_project: Annotated[str, Field(description="its project")] = "megatron-kaiyuan"
    swanlab: Annotated[bool, Field(description="SwanLab")] = False
    swanlab_project: Annotated[str, Field(description="its project")] = "megatron-kaiyuan"

    @field_validator("prometheus_file")
    @classmethod
    def _check_suffix(cls, path: Path | None) -> Path | None:
        if path is not None and path.suffix != ".prom":
            raise ValueError(f"{path}: the collector reads *.prom only; name it so")
        return path
