"""The host implementation of HCCL, through the real ProcessGroupHCCL and torch.distributed, against gloo."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.ascend import machine

RANK = Path(__file__).with_name("hccl_against_gloo.py")


@pytest.mark.parametrize(("soc", "ranks", "queue"), [("Ascend910A", 3, False), ("Ascend910B2", 2, True)])
def test_collectives_agree_with_gloo(soc: str, ranks: int, queue: bool) -> None:
    """From the thread that calls them, and from torch_npu's task queue."""
    done = machine.python(RANK, "reductions", "copies", "messages", soc=soc, ranks=ranks, task_queue=queue)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == [f"done {rank}" for rank in range(ranks)]
    assert done.register == [] and done.fallbacks == set()


def test_a_lost_rank_is_an_error() -> None:
    done = machine.python(RANK, "lost", ranks=2, environment={"ASCEND_STUB_HCCL_SECONDS": "1"})
    assert "lost:" in done.stdout and "done 1" in done.stdout, done.stderr[-3000:]
