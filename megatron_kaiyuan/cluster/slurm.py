"""Slurm's compact notations, without asking `scontrol`, which compute nodes do not always have."""

from __future__ import annotations

import re


def first_host(nodes: str) -> str:
    """First name in Slurm's list of hosts: `node[003-006,9],other` gives `node003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else nodes)


def tasks_on(tasks_per_node: str, node: int) -> int | None:
    """Tasks of one node from Slurm's `2(x3),1`, which is 2, 2, 2, 1; None where it does not say."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(times or 1)
    return counts[node] if node < len(counts) else None
