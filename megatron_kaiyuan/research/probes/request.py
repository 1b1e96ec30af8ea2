"""`probes.yaml`: which windows are probed, with which network, on which held-out text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_tools.curriculum.amounts import read_tokens
from megatron_kaiyuan.config import Section, parse, read_yaml
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.numbers import read_share
from megatron_kaiyuan.research.probes.parts import read_windows
from megatron_kaiyuan.research.probes.window import Window
from megatron_kaiyuan.research.task_fields import TaskFields

Factor = Annotated[float, Field(gt=0)]
ProtocolName = Literal["small_lr", "tuned"]


class WindowConfig(Section):
    """A window, or any other phase to compare with: a whole dataset, a mixture."""

    name: Annotated[str, Field(description="in the tables")]
    phases: Annotated[
        list[Path],
        Field(min_length=1, description="one folder a seed, of different documents; or one that all seeds share"),
    ]
    dataset: Annotated[str | None, Field(description="whose windows are looked at together")] = None
    quantile: Annotated[float | None, Field(ge=0, le=1, description="from the best score, 0")] = None


class MainRunConfig(Section):
    """The run that the probes are made for."""

    recipe: Annotated[Path, Field(description="its training recipe")]
    tokens: Annotated[int | None, Field(gt=0, description="null: the recipe's train.train_tokens")] = None


class ProbeConfig(TaskFields):
    """All of `probes.yaml`. Paths start at the current folder."""

    recipe: Annotated[Path, Field(description="of the small network, with one phase whose path each run replaces")]
    windows: Annotated[
        list[Path | WindowConfig],
        Field(min_length=1, description="windows.json of kaiyuan-data quantile, or windows one by one"),
    ]
    held_out: Annotated[dict[str, Path], Field(min_length=1, description="domain: prefix of a corpus")]
    held_out_tokens: Annotated[int | None, Field(gt=0, description="measured after each run; null: all")] = 100_000
    train_tokens: Annotated[int | None, Field(gt=0, description="of each run; null: what every window has")] = None
    seeds: Annotated[int, Field(ge=2, le=1000, description="runs of each window")] = 3
    share_documents: Annotated[
        bool, Field(description="all seeds train on the whole window of windows.json, not on a part of their own")
    ] = False
    protocols: Annotated[
        list[ProtocolName], Field(min_length=1, description="which of the next two decide the learning rate")
    ] = ["small_lr"]
    small_lr: Annotated[Factor, Field(description="of the recipe's learning rates; for all windows")] = 0.1
    tuned: Annotated[
        list[Factor], Field(min_length=2, description="factors that are tried for each window; the best one counts")
    ] = [0.3, 1.0, 3.0]
    significance: Annotated[
        float, Field(gt=0, lt=0.5, description="chance that windows of a dataset which do not differ are called any")
    ] = 0.05
    expected_sd: Annotated[
        float,
        Field(gt=0, description="for the plan: SD of the difference of two runs of one seed, bits per byte"),
    ] = 0.03
    main_run: Annotated[
        MainRunConfig | None, Field(description="the run that is decided for: the cost is a share of its FLOPs")
    ] = None

    @field_validator("train_tokens", "held_out_tokens", mode="before")
    @classmethod
    def _check_tokens(cls, value: Any) -> Any:
        tokens = None if value is None else read_tokens(value)
        if tokens == "all":
            raise ValueError("write a number of tokens, as 200_000 or 2M, or null")
        return tokens

    @field_validator("significance", mode="before")
    @classmethod
    def _read_significance(cls, value: Any) -> Any:
        return read_share(value) if isinstance(value, str) else value

    @field_validator("windows", mode="before", json_schema_input_type=Path | list[Path | WindowConfig])
    @classmethod
    def _list_windows(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_names(self) -> ProbeConfig:
        for domain in self.held_out:
            if domain == MEAN or not re.fullmatch(r"\w[\w.-]*", domain):
                raise ValueError(
                    f"held_out {domain!r}: name a domain with letters, digits, '_', '-' and '.', not {MEAN!r}"
                )
        if len(set(self.protocols)) < len(self.protocols):
            raise ValueError("protocols: one is named twice")
        return self

    def factors(self, protocol: ProtocolName) -> list[float]:
        """Of the recipe's learning rates, those that a protocol trains with."""
        return [self.small_lr] if protocol == "small_lr" else list(self.tuned)


# The measure besides the domains: their arithmetic mean.
MEAN = "mean"


def read_request(path: Path, overrides: Sequence[str] = ()) -> tuple[ProbeConfig, list[Window]]:
    """Read `probes.yaml` and the windows that it names; windows of a `windows.json` have one part, the whole of them.

    Raises:
        UserError: a field, a file or a window is wrong; the message names it.
    """
    config = parse(ProbeConfig, read_yaml(path, overrides), source=str(path))
    windows = [window for named in config.windows for window in _windows(named)]
    _check(path, config, windows)
    return config, windows


def _windows(named: Path | WindowConfig) -> list[Window]:
    if isinstance(named, WindowConfig):
        return [Window(named.name, named.dataset, named.quantile, tuple(named.phases))]
    return read_windows(named)


def _check(path: Path, config: ProbeConfig, windows: Sequence[Window]) -> None:
    if len(windows) < 2:
        raise UserError(f"{path}: windows: one alone is compared with nothing; name two or more")
    places: set[tuple[str, float]] = set()
    names: set[str] = set()
    for window in windows:
        if window.name in names:
            raise UserError(f"{path}: windows: two are called {window.name!r}; rename one")
        names.add(window.name)
        if (window.quantile is None) != (window.dataset is None):
            raise UserError(f"{path}: window {window.name!r}: give it both a dataset and a quantile, or neither")
        if window.dataset is not None and window.quantile is not None:
            place = window.dataset, window.quantile
            if place in places:
                raise UserError(f"{path}: two windows of dataset {place[0]!r} have quantile {place[1]:g}; remove one")
            places.add(place)
        given = len(window.parts)
        if 1 < given < config.seeds:
            raise UserError(
                f"{path}: window {window.name!r} has {given} phases for {config.seeds} seeds; give one a seed, or one "
                "for all seeds"
            )
    shares = {config.share_documents or (not window.listed and len(window.parts) == 1) for window in windows}
    if len(shares) > 1 or (config.share_documents and any(len(window.parts) > 1 for window in windows)):
        raise UserError(
            f"{path}: the seeds of some windows share documents and those of others do not; give a phase for each "
            "seed, or one for all and share_documents: true"
        )
