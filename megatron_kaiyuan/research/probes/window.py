"""A window of data: the phases that a probe trains on, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Window:
    """Phases that a probe trains on.

    Attributes:
        dataset, quantile: None for a phase that is no window of a score.
        parts: folders, one a seed, or one for all.
        part_tokens: about so many in each part, where it is not built yet.
        portrait: what its documents are like, as `kaiyuan-data quantile` describes it.
        listed: the windows.json that has it.
    """

    name: str
    dataset: str | None
    quantile: float | None
    parts: tuple[Path, ...]
    part_tokens: int = 0
    portrait: dict[str, Any] = field(default_factory=dict)
    listed: Path | None = None
