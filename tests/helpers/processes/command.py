"""The type of the fixture `command`, which runs `kaiyuan-data`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Command = Callable[..., "subprocess.CompletedProcess[str]"]
