"""How long a rank takes to its own gradients, before it waits for those of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_kaiyuan.platform import Platform


class OwnTime:
    """Two marks a step in the queue of the device, which the host never waits for."""

    def __init__(self, platform: Platform):
        self._platform = platform
        self._began, self._ended = platform.mark(), platform.mark()

    def begin(self) -> None:
        """The step begins."""
        self._began.record()

    def ends_at(self, reduction: Callable[..., Any]) -> Callable[..., Any]:
        """Return the reduction of gradients, with a mark before it."""

        def marked(*arguments: Any, **named: Any) -> Any:
            self._ended.record()
            return reduction(*arguments, **named)

        return marked

    def seconds(self) -> float:
        """Seconds of the last step; the host has waited for its loss since."""
        return self._began.elapsed_time(self._ended) / 1e3
