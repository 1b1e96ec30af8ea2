"""Environments as launchers leave them (recorded from real starts where noted) and the ways they go wrong."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from megatron_kaiyuan.cluster import Rank, discover
from megatron_kaiyuan.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "1234",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-77@1",
}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4", "MASTER_ADDR": "first"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "node[003-006]",
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "0",
}
# As Slurm's and Flux's code for Cray's MPI, and jobs of Aurora, name them.
PALS = {
    "PALS_RANKID": "9",
    "PALS_LOCAL_RANKID": "1",
    "PALS_LOCAL_SIZE": "8",
    "PALS_NODEID": "1",
    "PALS_APID": "4f0e",
    "MASTER_ADDR": "first",
    "WORLD_SIZE": "16",
}
# As flux-core's own tests and flux-environment(7) name them, with the PMI variables of its shell.
FLUX = {
    "FLUX_TASK_RANK": "5",
    "FLUX_TASK_LOCAL_ID": "1",
    "FLUX_JOB_SIZE": "8",
    "FLUX_JOB_NNODES": "2",
    "FLUX_JOB_ID": "f7q2",
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
    "MASTER_ADDR": "first",
}
MSRUN = {
    "MS_ROLE": "MS_WORKER",
    "RANK_ID": "1",
    "RANK_SIZE": "2",
    "DEVICE_ID": "1",
    "MS_NODE_ID": "1",
    "MS_SCHED_HOST": "first",
    "MS_SCHED_PORT": "8118",
    "MS_WORKER_NUM": "2",
}


def test_torchrun() -> None:
    assert discover(TORCHRUN) == Rank(3, 4, 1, 2, "first", 1234, "torchrun")


def test_open_mpi_on_one_node_agrees_on_a_master() -> None:
    one, other = (
        discover(OPEN_MPI),
        discover({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}),
    )
    assert (one.rank, one.world_size, one.local_rank, one.local_world_size) == (1, 2, 1, 2)
    assert one.launcher == "openmpi"
    assert (one.master_address, one.master_port) == ("127.0.0.1", other.master_port)
    assert discover({**OPEN_MPI, "PMIX_NAMESPACE": "another"}).master_port != one.master_port


def test_mpich() -> None:
    rank = discover(MPICH)
    assert (rank.rank, rank.world_size, rank.local_rank, rank.local_world_size) == (5, 8, 1, 4)
    assert (rank.master_address, rank.launcher) == ("first", "mpich")


def test_pals() -> None:
    rank = discover(PALS)
    assert (rank.rank, rank.world_size, rank.local_rank, rank.local_world_size) == (9, 16, 1, 8)
    assert (rank.master_address, rank.launcher) == ("first", "pals")
    cray = {name: value for name, value in PALS.items() if name != "WORLD_SIZE"} | {"PMI_RANK": "9", "PMI_SIZE": "16"}
    assert discover(cray) == rank
    one_node = {"PALS_RANKID": "1", "WORLD_SIZE": "8"}
    assert discover({**PALS, **one_node, "MASTER_ADDR": ""}).master_address == "127.0.0.1"
    assert discover({**PALS, "PALS_APID": "another"}).master_port != rank.master_port


def test_flux() -> None:
    rank = discover(FLUX)
    assert (rank.rank, rank.world_size, rank.local_rank, rank.local_world_size) == (5, 8, 1, 4)
    assert (rank.master_address, rank.launcher) == ("first", "flux")
    uneven = discover({**FLUX, "FLUX_JOB_SIZE": "7"})
    assert uneven.local_world_size is None
    assert discover({**FLUX, "FLUX_JOB_NNODES": "1", "MASTER_ADDR": ""}).master_address == "127.0.0.1"


def test_variables_of_pals_under_other_launchers() -> None:
    """srun --mpi=cray_shasta and Flux set them for Cray's MPI."""
    pals = {name: value for name, value in PALS.items() if name.startswith("PALS")}
    assert discover({**SLURM, **pals}) == discover(SLURM)
    assert discover({**FLUX, **pals}) == discover(FLUX)
    assert discover({**SLURM, **FLUX, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}) == discover(FLUX)


def test_slurm_step() -> None:
    rank = discover(SLURM)
    assert (rank.rank, rank.world_size, rank.local_rank, rank.local_world_size) == (5, 7, 1, 2)
    assert (rank.master_address, rank.launcher) == ("node003", "slurm")
    assert discover({**SLURM, "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}).local_world_size == 1


def test_slurm_step_on_one_node_needs_no_name() -> None:
    one_node = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}
    rank = discover({**one_node, "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "node007"})
    assert (rank.local_world_size, rank.master_address) == (2, "127.0.0.1")
    chosen = {**one_node, "SLURM_NODEID": "0", "MASTER_ADDR": "10.0.0.7"}
    assert discover(chosen).master_address == "10.0.0.7"


def test_slurm_batch_script_is_a_single_process() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODELIST": "node[1-2]"}
    rank = discover(batch)
    assert (rank.rank, rank.world_size, rank.launcher) == (0, 1, "none")


@pytest.mark.parametrize("specific", [{**TORCHRUN, "TORCHELASTIC_RUN_ID": "1"}, OPEN_MPI, MPICH, MSRUN])
def test_specific_launcher_wins_over_slurm(specific: dict[str, str]) -> None:
    """mpirun and torchrun have srun start one process of theirs on each node, whose variables the ranks see."""
    helpers = {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_PROCID": "2"}
    assert discover({**helpers, **specific}) == discover(specific)


@pytest.mark.parametrize("step", ["4294967290", "4294967291"])
def test_shell_of_slurm_is_no_step(step: str) -> None:
    """The shell that salloc opens has all the variables of a step of srun's; this is recorded from one."""
    shell = {**SLURM, "SLURM_STEP_ID": step, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_PTY_PORT": "34889"}
    assert discover(shell).launcher == "none"
    assert discover({**shell, **OPEN_MPI}).launcher == "openmpi"


def test_rank_by_hand_inside_a_task_may_repeat_the_launcher() -> None:
    by_hand = {"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "MASTER_ADDR": "first"}
    assert discover({**SLURM, **by_hand}).rank == 5
    one_task = {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    assert discover({**one_task, "SLURM_NODEID": "0", **by_hand}).rank == 5
    assert discover({**SLURM, "WORLD_SIZE": "7", "LOCAL_RANK": "1"}).launcher == "slurm"


def test_jobs_from_the_shell_of_srun_are_not_one_a_task() -> None:
    agent = {**TORCHRUN, "RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}
    assert discover({**SLURM, **agent, "SLURM_PTY_PORT": "34889"}).launcher == "torchrun"


def test_slurm_with_pmi_has_no_local_rank_of_mpich() -> None:
    assert discover({**SLURM, "PMI_RANK": "5", "PMI_SIZE": "7"}).launcher == "slurm"


def test_msrun_worker_and_scheduler() -> None:
    worker = discover(MSRUN)
    assert (worker.rank, worker.world_size, worker.local_rank) == (1, 2, 1)
    # The scheduler itself holds MS_SCHED_PORT.
    assert (worker.master_address, worker.master_port, worker.is_scheduler) == ("first", 8119, False)
    scheduler = discover({**MSRUN, "MS_ROLE": "MS_SCHED", "RANK_ID": "0"})
    assert scheduler.is_scheduler


def test_no_launcher() -> None:
    rank = discover({"HOME": "/nowhere"})
    assert rank == Rank(0, 1, 0, 1, "127.0.0.1", rank.master_port, "none")
    with pytest.raises(dataclasses.FrozenInstanceError):
        rank.rank = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({**TORCHRUN, "RANK": "4"}, "rank 4 is not below world size 4"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "local rank 2"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, "local world size 8 is above"),
        ({**TORCHRUN, "WORLD_SIZE": "four"}, "WORLD_SIZE='four'"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK='-1'"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "70000"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"RANK": "0"}, "WORLD_SIZE is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "first"}, "LOCAL_RANK is missing"),
        ({**TORCHRUN, "RANK": "0"}, "local rank 1 is above rank 0"),
        ({"WORLD_SIZE": "2"}, "set RANK"),
        ({"LOCAL_RANK": "1"}, "RANK and WORLD_SIZE are missing"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is missing"),
        ({"PMI_SIZE": "2"}, "PMI_RANK is missing"),
        ({"RANK_SIZE": "2"}, "RANK_ID is missing"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID is missing"),
        ({"PMIX_RANK": "1"}, "no number of ranks"),
        # Evaluated once, in the batch script, instead of in each task.
        (
            {**SLURM, **TORCHRUN, "RANK": "0", "WORLD_SIZE": "7", "LOCAL_RANK": "0"},
            "RANK=0 of WORLD_SIZE=7 contradicts",
        ),
        ({**SLURM, **TORCHRUN}, "SLURM_PROCID=5 of SLURM_STEP_NUM_TASKS=7"),
        ({**OPEN_MPI, **TORCHRUN}, "OMPI_COMM_WORLD_RANK=1 of OMPI_COMM_WORLD_SIZE=2"),
        ({**MPICH, **TORCHRUN}, "PMI_RANK=5 of PMI_SIZE=8"),
        ({**SLURM, "WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set besides, but the launcher says 7"),
        ({**OPEN_MPI, "LOCAL_RANK": "0"}, "LOCAL_RANK=0 is set besides, but the launcher says 1"),
        ({**MSRUN, "MS_WORKER_NUM": "4"}, "RANK_SIZE=2 contradicts MS_WORKER_NUM=4"),
        ({**SLURM, **OPEN_MPI}, "srun runs 2 tasks on this node, and each starts openmpi"),
        (
            {**SLURM, **TORCHRUN, "RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"},
            "srun runs 2 tasks on this node, and each starts torchrun",
        ),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4"}, "MASTER_ADDR"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "MASTER_ADDR": "first"}, "MPI_LOCALRANKID"),
        ({name: value for name, value in PALS.items() if name != "WORLD_SIZE"}, "pals: no variable has the number"),
        ({**PALS, "MASTER_ADDR": ""}, "pals: several nodes, but MASTER_ADDR is missing"),
        ({**FLUX, "MASTER_ADDR": ""}, "flux: several nodes, but MASTER_ADDR is missing"),
        ({"FLUX_JOB_SIZE": "8"}, "FLUX_TASK_RANK is missing"),
        ({**FLUX, **TORCHRUN}, "RANK=3 of WORLD_SIZE=4 contradicts FLUX_TASK_RANK=5"),
        ({**SLURM, "SLURM_PROCID": "7"}, "rank 7"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST"),
        ({name: value for name, value in MSRUN.items() if name != "MS_NODE_ID"}, "--node_rank"),
    ],
)
def test_contradiction_is_one_line_that_names_it(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        discover(environment)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


_PROGRAM = """
import os, sys
from megatron_kaiyuan.cluster import discover
rank = discover(os.environ)
print(f"{rank.launcher} {rank.rank}/{rank.world_size} {rank.local_rank}/{rank.local_world_size} {rank.master_port}")
"""


def test_real_mpirun() -> None:
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    result = subprocess.run(
        ["mpirun", "-n", "2", "--oversubscribe", sys.executable, "-c", _PROGRAM],
        env={**os.environ, **allowed},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = sorted(line.split() for line in result.stdout.splitlines())
    assert [line[:3] for line in lines] == [["openmpi", "0/2", "0/2"], ["openmpi", "1/2", "1/2"]]
    assert lines[0][3] == lines[1][3]


def test_a_pod_of_kubeflows_trainer_is_a_node_and_no_rank() -> None:
    with pytest.raises(UserError, match="PET_NNODES=2 says that this is one of several nodes; start it with launch"):
        discover({"PET_NNODES": "2", "PET_NODE_RANK": "1"})
    assert discover({"PET_NNODES": "1"}).world_size == 1
