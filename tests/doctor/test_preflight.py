"""`kaiyuan train --preflight`: ranks in order train, and a node with a fault is named and ends all of them alike."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes
from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.doctor.outliers import outliers, partner
from megatron_kaiyuan.doctor.quick_verdict import bad_nodes
from megatron_kaiyuan.exit_codes import BAD_NODE, FAILED, FINISHED
from tests.helpers.processes import rank_server

RECORDED = Path(__file__).with_name("driver_output")


QUICK = ["-m", "megatron_kaiyuan.doctor.quick", "cpu"]


def examine(run_dir: Path, program: Sequence[object], seconds: int, **variables: str) -> tuple[list[int], str, str]:
    """The examination on two ranks, as `kaiyuan train --preflight` starts it: exit codes, output, errors."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with rank_server.started(2, [*program, run_dir, seconds], imported="training") as job:
            codes = job.exit_codes(240)
            return codes, (job._folder / "output").read_text(), job.errors()


def nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `nvidia-smi` prints something else than here."""
    for name, text in (("nvidia-smi", script), ("dmesg", "true")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_ranks_in_order(tmp_path: Path) -> None:
    codes, output, errors = examine(tmp_path / "run", QUICK, 170)
    assert codes == [FINISHED, FINISHED], errors + output
    assert errors.splitlines()[-1].startswith("preflight: 2 ranks on 1 nodes are in order, ")
    assert read_bad_nodes(tmp_path / "run") is None and list(tmp_path.iterdir()) == []


def test_a_bad_node_is_named_by_all_ranks(tmp_path: Path) -> None:
    text = (RECORDED / "nvidia_smi_l4.xml").read_text().replace("<dram_uncorrectable>0", "<dram_uncorrectable>7", 1)
    (tmp_path / "log.xml").write_text(text)
    codes, _, errors = examine(tmp_path / "run", QUICK, 170, **nvidia_smi(tmp_path, f"cat {tmp_path}/log.xml"))
    # As torchrun does, the launcher ends rank 0, which leaves last, when another rank has left with a failure.
    assert codes[1] == BAD_NODE and codes[0] in (BAD_NODE, -signal.SIGTERM), errors
    host = socket.gethostname()
    (line,) = (line for line in errors.splitlines() if line.startswith("error"))
    assert line.startswith(f"error: preflight: bad nodes {host}: health: GPU 00000000:01:00.0 (NVIDIA L4): 7 uncorr")
    found = read_bad_nodes(tmp_path / "run")
    assert found is not None and found.hosts == [host] and "7 uncorrectable memory errors" in found.why


HANG = """
import os, signal, sys
from megatron_kaiyuan.doctor import exchanges, quick
def stop(*_):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
exchanges.examine_exchanges = stop
quick.main()
"""


def test_a_rank_that_hangs_is_named_in_time(tmp_path: Path) -> None:
    """Rank 1 stops in its first collective, as one whose device no longer answers."""
    with rank_server.started(2, ["-c", HANG, "cpu", tmp_path / "run", 12], imported="training") as job:
        began = time.monotonic()
        while not (tmp_path / "run" / "bad_nodes.json").exists():
            assert time.monotonic() - began < 120, job.errors()
            time.sleep(0.1)
        found = read_bad_nodes(tmp_path / "run")
        assert found is not None and "did not answer in time: its device or its process hangs (rank 1)" in found.why


def test_a_place_is_judged_by_its_best_partner() -> None:
    for places in range(2, 12):
        for turn in range(3):
            for place in range(places):
                other = partner(place, places, turn)
                assert other is None or (partner(other, places, turn) == place and other != place)
        if places == 2:
            continue
        # One bad place slows all that it meets, and no other is called slow.
        for bad in range(places):
            met = [[partner(place, places, turn) for turn in range(3)] for place in range(places)]
            speeds = [
                max(0.1 if bad in (place, other) else 1.0 for other in others if other is not None)
                for place, others in enumerate(met)
            ]
            assert outliers(speeds) == [bad], (places, bad, speeds)


def test_who_is_an_outlier() -> None:
    assert outliers([1.0, 1.1, 0.3, 1.0]) == [2]
    assert outliers([1.0, 0.9, 1.1, 0.6]) == []
    assert outliers([1.0, 0.1]) == [], "of two, the odd one cannot be named"
    assert outliers([0.0, 0.0, 0.0, 1.0]) == []


@pytest.mark.parametrize(
    ("ill", "named"),
    [(set(), []), ({2}, ["b"]), ({2, 3}, ["b"]), ({0, 2}, []), ({0, 2, 4}, [])],
)
def test_which_nodes_are_bad(ill: set[int], named: list[str]) -> None:
    """Ranks 0 and 1 are on node a, 2 and 3 on b, 4 on c; more than half of the nodes are not bad nodes."""
    everybody = [Examination() for _ in range(5)]
    for rank in ill:
        everybody[rank].problem("ECC", of_node=True)
    everybody[4].problem("the recipe is another one")
    assert bad_nodes(everybody, ["a", "a", "b", "b", "c"]) == named
    alone = Examination()
    alone.problem("ECC", of_node=True)
    assert bad_nodes([alone], ["a"]) == ["a"] and FAILED == 1
