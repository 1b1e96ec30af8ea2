"""How much memory a build may take: as written, `512M` or `4G`, or half of what is free."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from megatron_kaiyuan.errors import UserError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# What a build needs beside the rows: pieces of the corpora as they are read, and the sums of the profile.
_BASE, _BYTES_PER_DATASET = 64 << 20, 4096
_CGROUP = Path("/sys/fs/cgroup")


def rows_memory(memory: int, datasets: int) -> int:
    """Bytes that the rows of a phase may take of `memory`.

    Raises:
        UserError: there would be none left, with the number that is needed.
    """
    base = _BASE + _BYTES_PER_DATASET * datasets
    least = base + (32 << 20)
    if memory < least:
        raise UserError(f"--memory is {memory >> 20}M; {datasets:,} datasets need at least {-(-least >> 20)}M")
    return memory - base


def parse_memory(text: str) -> int:
    """Bytes from `512M`, `4G` or `1.5GiB`; units of 1024.

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"--memory is {text!r}; write a size such as 512M or 4G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def default_memory() -> int:
    """Half of what is free on the machine, or in the container that the process runs in, in bytes."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return max(free // 2, 0)
