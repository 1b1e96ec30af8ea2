"""What one rank has found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from megatron_kaiyuan.errors import UserError

Level = Literal["problem", "note"]


@dataclass(frozen=True)
class Finding:
    """Something to know, in one line that says what to do.

    Attributes:
        level: a `problem` stops training or harms it; a `note` may explain something.
        of_node: it is this node's: another one in its place would not have it.
    """

    level: Level
    message: str
    of_node: bool = False


@dataclass
class Examination:
    """Facts and findings of one rank; made of numbers, texts, lists and dictionaries, so that it travels as JSON.

    Attributes:
        facts: by part.
        doing: what is being examined, for the case that it never ends.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    doing: str = "start"

    def problem(self, message: str, of_node: bool = False) -> None:
        self.findings.append(Finding("problem", message, of_node))

    def note(self, message: str) -> None:
        self.findings.append(Finding("note", message))

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Examine one part: whatever goes wrong in the body is a finding, and no reason to stop."""
        self.doing = name
        try:
            yield
        except UserError as error:
            message = str(error)
            self.problem(message if message.startswith(name) else f"{name}: {message}")
        except Exception as error:
            self.problem(f"{name}: {in_one_line(error)}")

    def as_json(self) -> dict[str, Any]:
        return {"facts": self.facts, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Examination:
        return cls(content["facts"], [Finding(**finding) for finding in content["findings"]])


def in_one_line(error: BaseException) -> str:
    """The first line of a library's error, without the stack that some of them bring along."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
