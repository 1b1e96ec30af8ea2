"""Slurm's notations, from the examples of its manuals."""

from __future__ import annotations

import pytest

from megatron_kaiyuan.cluster.slurm import first_host, tasks_on


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("host", "host"),
        ("a,b[1-3]", "a"),
        ("node[003-006,9],other", "node003"),
        ("rack[2-3]n[07,09]", "rack2n07"),
        ("n[7].cluster.example", "n7.cluster.example"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_on_each_node() -> None:
    assert [tasks_on("2(x3),1", node) for node in range(5)] == [2, 2, 2, 1, None]
    assert tasks_on("", 0) is None
