"""What a check is, what it is given, and how it ends. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from megatron_kaiyuan.platform import Platform

State = Literal["ok", "failed", "not possible"]
# Each operator ends before the next begins: one that fails in torch_npu's task queue silently stops every later one.
ONE_AT_A_TIME = MappingProxyType({"TASK_QUEUE_ENABLE": "0"})


class CheckFailed(Exception):
    """What a check looks for is not so; the message has the figures."""


class NotPossible(Exception):
    """This machine or platform does not have what a check looks at; the message says what."""


def worst(errors: Iterable[float]) -> float:
    """The largest of some; NaN where one is NaN, which `max` may pass over."""
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


@dataclass(frozen=True)
class Check:
    """One line of the record.

    Attributes:
        where: `package.module.function`. It is called with a `Context` in a process of its own and returns its figure
            as text, or that and facts; it raises `CheckFailed` or `NotPossible`, and anything else counts as failed.
        title: what the line says.
        seconds: after which the process is killed and the check has failed.
        environment: variables that its process gets besides.
    """

    where: str
    title: str
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How `--only` calls it."""
        return self.where.rpartition(".")[2]


@dataclass(frozen=True)
class Context:
    """What a check may use.

    Attributes:
        platform: its name, resolved.
        ranks: devices of this node, or processes on a CPU, that checks of all ranks take.
        work: folder for corpora and runs, removed at the end.
        recipe: of the last check; None: Kaiyuan-2B's.
        small: fewer tokens than training has, as a CPU computes operators.
    """

    platform: str
    ranks: int
    work: Path
    recipe: Path | None = None
    small: bool = False

    @property
    def on_cpu(self) -> bool:
        return self.platform == "cpu"

    def activate(self) -> Platform:
        """The platform, on the first device."""
        from megatron_kaiyuan import platform

        return platform.activate(self.platform)

    def require(self, *platforms: str, because: str) -> None:
        """End the check on other platforms.

        Raises:
            NotPossible: with the reason.
        """
        if self.platform not in platforms:
            raise NotPossible(f"not on platform {self.platform}: {because}")

    def as_json(self) -> dict[str, Any]:
        recipe = None if self.recipe is None else str(self.recipe)
        return {**asdict(self), "work": str(self.work), "recipe": recipe}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Context:
        recipe = content["recipe"]
        return cls(**{**content, "work": Path(content["work"]), "recipe": None if recipe is None else Path(recipe)})


@dataclass(frozen=True)
class Result:
    """How a check ended.

    Attributes:
        figure: in one line: what was found, or why not.
        output: what its processes printed, without credentials.
        facts: for the checks that follow.
    """

    name: str
    title: str
    state: State
    figure: str
    seconds: float
    output: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        return f"{self.title:<46} {self.state:<12} {self.seconds:>6.1f} s  {self.figure}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
