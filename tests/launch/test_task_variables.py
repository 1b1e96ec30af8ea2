"""launch/train.sh as a task of launchers that are not here, with their variables; and torchrun.sh under a real pdsh."""

from __future__ import annotations

import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT, launched, started
from tests.helpers.training.small_run import losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("launcher", "each", "all_of_them"),
    [
        (
            "pals",
            ("PALS_RANKID", "PALS_LOCAL_RANKID"),
            {"PALS_LOCAL_SIZE": "2", "PALS_APID": "4f0e", "WORLD_SIZE": "2"},
        ),
        (
            "flux",
            ("FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", "PMI_RANK"),
            {"FLUX_JOB_SIZE": "2", "FLUX_JOB_NNODES": "1", "FLUX_JOB_ID": "f7q2", "PMI_SIZE": "2"},
        ),
    ],
)
def test_tasks_are_ranks(
    launcher: str,
    each: tuple[str, ...],
    all_of_them: dict[str, str],
    recipe: Path,
    losses_under_torchrun: list[float],
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                launched(
                    "train.sh", recipe, f"run_dir={tmp_path}", environ={**all_of_them, **dict.fromkeys(each, str(rank))}
                )
            )
            for rank in range(2)
        ]
        for rank in ranks:
            code, _, errors = rank.finish()
            assert code == 0, errors
    assert losses(tmp_path) == losses_under_torchrun


def test_two_nodes_of_pdsh(recipe: Path, losses_under_torchrun: list[float], tmp_path: Path) -> None:
    """Its module exec stands for ssh: it runs the command of each host here."""
    pdsh = shutil.which("pdsh")
    if pdsh is None:
        pytest.skip("there is no pdsh: apt-get install pdsh")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command = [pdsh, "-S", "-R", "exec", "-w", "node[0-1]", "bash", ROOT / "launch/torchrun.sh", *options]
    with started([*command, recipe, f"run_dir={tmp_path}"], {"TP_SOCKET_IFNAME": "lo"}, Path("/")) as job:
        code, output, errors = job.finish()
    assert code == 0, errors
    assert losses(tmp_path) == losses_under_torchrun
    assert "node0: launch: " in output and "node1: launch: " in output
