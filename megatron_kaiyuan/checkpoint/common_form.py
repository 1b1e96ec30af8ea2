"""What the part of a checkpoint that is the same on every rank says about its run, as far as readers rely on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from megatron_kaiyuan.data.tokenizer_identity import TokenizerForm
from megatron_kaiyuan.forms import Count, Form


class _Phase(Form):
    name: str
    tokens: Count


class _Run(Form):
    config: dict[str, JsonValue]
    phases: list[_Phase] = []
    tokenizer: TokenizerForm | None = None
    versions: dict[str, JsonValue] = {}


class _Progress(Form):
    step: Count
    tokens: Count
    skipped_steps: Count = 0
    overflow_steps: Count = 0
    left_out: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] = []


class CommonForm(Form):
    """`common.pt`, of a run's checkpoint or of an average."""

    run: _Run
    progress: _Progress | None = None


class _ResumableRun(_Run):
    phases: list[_Phase]


class _ResumableProgress(_Progress):
    # Each field is one of the run's own progress.
    model_config = ConfigDict(extra="forbid")


class _Scaler(Form):
    """The numbers of the loss scaler beside its scale."""

    growth_tracker: Count
    # Falls below zero while overflows follow each other.
    hysteresis_tracker: int


class _Optimizer(Form):
    grad_scaler: _Scaler | None = None


class _Ema(Form):
    total: Annotated[float, Field(ge=0)]


class ResumableForm(CommonForm):
    """`common.pt` of a checkpoint from which training continues."""

    run: _ResumableRun
    progress: _ResumableProgress
    optimizer: _Optimizer = _Optimizer()
    ema: _Ema | None = None
