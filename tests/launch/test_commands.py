"""What the launch scripts would start on sites that are not here, as they print it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.processes.launched import ROOT, launched, started, succeed

MANIFEST = ROOT / "launch" / "k8s" / "pytorchjob.yaml"


def _command(script: str, *arguments: object, **environ: str) -> str:
    output = succeed(script, "--dry-run", *arguments, environ=environ)
    return next(line for line in output.splitlines() if line.startswith("launch: ")).replace("'", "")


def test_nodes_that_know_their_number_meet_as_such(recipe: Path) -> None:
    options = ["--nproc-per-node=1", "--rdzv-endpoint=node0:29500"]
    command = _command("torchrun.sh", *options, "--nnodes=2", "--node-rank=1", recipe)
    assert "--nnodes 2 --node-rank 1 --rdzv-backend static --rdzv-endpoint node0:29500" in command
    command = _command("torchrun.sh", *options, "--nnodes=1:2", recipe)
    assert "--nnodes 1:2 --rdzv-backend c10d --rdzv-endpoint node0:29500" in command
    for port, message in (("99999", "a port is at most 65535"), ("http", "port must be a whole number of at least 1")):
        with launched("torchrun.sh", "--nnodes=2", f"--rdzv-endpoint=node0:{port}", "--dry-run", recipe) as job:
            code, _, errors = job.finish()
        assert code == 2 and message in errors


def test_several_hosts_of_open_mpi(recipe: Path) -> None:
    command = _command("mpirun.sh", "--nproc-per-node", 2, "--hosts", "a,b", recipe, KAIYUAN_VENV=sys.prefix)
    assert "mpirun -n 4 --host a:2,b:2 --bind-to none" in command
    assert ("--allow-run-as-root" in command) == (os.geteuid() == 0)
    for name in (
        "MASTER_ADDR",
        "MASTER_PORT",
        "PATH",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "KAIYUAN_VENV",
        "KAIYUAN_PARENT",
    ):
        assert f"-x {name} " in command


@pytest.mark.parametrize(
    ("environ", "devices", "settings"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, "1  INFO"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "5"}, 1, " 1200 INFO"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": ""}, 2, " 1200 INFO"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, "  INFO"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0, "  INFO"),
    ],
)
def test_devices_bring_their_settings_and_the_users_stay(
    environ: dict[str, str], devices: int, settings: str, tmp_path: Path
) -> None:
    script = tmp_path / "show.sh"
    shown = "${CUDA_DEVICE_MAX_CONNECTIONS:-} ${HCCL_CONNECT_TIMEOUT:-} $NCCL_DEBUG"
    script.write_text(f'set -euo pipefail; source {ROOT}/launch/common.sh; find_devices; echo "$devices {shown}"')
    with launched(str(script), environ={"NCCL_DEBUG": "INFO", **environ}) as job:
        assert job.finish() == (0, f"{devices} {settings}\n", "")


@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
def test_table_of_another_job_ends_in_one_line(script: str, recipe: Path, tmp_path: Path) -> None:
    table = tmp_path / "ranks.json"
    device = {"device_id": "0", "device_ip": "192.168.0.1", "rank_id": "0"}
    table.write_text(json.dumps({"status": "completed", "server_list": [{"server_id": "a", "device": [device]}]}))
    npus = {"ASCEND_RT_VISIBLE_DEVICES": "0,1", "RANK_TABLE_FILE": str(table), "HCCL_IF_BASE_PORT": "2000"}
    with launched(script, "--dry-run", recipe, environ=npus) as job:
        code, _, errors = job.finish()
    assert (code, errors.count("\n")) == (2, 1)
    assert f"RANK_TABLE_FILE={table} lists 1 ranks, and this job has 2" in errors
    with launched(script, "--dry-run", "--nproc-per-node", 1, recipe, environ=npus) as job:
        code, _, errors = job.finish()
    assert code == 0, errors
    assert f"launch: RANK_TABLE_FILE={table}: torch_npu takes the addresses of the 1 ranks from it\n" in errors


def test_manifest_of_kubernetes_starts_what_it_says(recipe: Path) -> None:
    """Its shell line is run as the operator would have it run, but for --dry-run."""
    job = yaml.safe_load(MANIFEST.read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    (container,) = replicas["Worker"]["template"]["spec"]["containers"]
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    chosen = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(chosen["NNODES"]) == replicas["Master"]["replicas"] + replicas["Worker"]["replicas"]
    assert int(chosen["NPROC_PER_NODE"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    (line,) = container["args"]
    operator = {"MASTER_ADDR": "kaiyuan-master-0", "MASTER_PORT": "23456", "RANK": "1", "WORLD_SIZE": "2"}
    environ = {**chosen, **operator, "NPROC_PER_NODE": "1", "RECIPE": str(recipe)}
    words = shlex.split(line)
    assert words[:2] == ["exec", "launch/torchrun.sh"]
    dry = line.replace("torchrun.sh", "torchrun.sh --dry-run")
    with started([*container["command"], dry], environ, ROOT) as pod:
        code, output, errors = pod.finish()
    assert code == 0, errors
    command = output.replace("'", "")
    assert "--nnodes 2 --node-rank 1 --rdzv-backend static --rdzv-endpoint kaiyuan-master-0:23456" in command


def test_variables_of_kubeflows_trainer_are_read_or_refused(recipe: Path) -> None:
    """They are torchrun's own; beside this script's options they would make a job of one node wait for a second one."""
    pod = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "kaiyuan-node-0-0.kaiyuan",
        "PET_MASTER_PORT": "29400",
    }
    command = _command("torchrun.sh", recipe, **pod)
    assert "--nnodes 2 --node-rank 1 --rdzv-backend static --rdzv-endpoint kaiyuan-node-0-0.kaiyuan:29400" in command
    assert "--nproc-per-node 1 " in command
    # What is said to the script itself counts.
    assert "--nproc-per-node 2 " in _command("torchrun.sh", "--nproc-per-node", 2, recipe, **pod)
    assert "--standalone --nproc-per-node 1 " in _command(
        "torchrun.sh", recipe, PET_NNODES="1", PET_NPROC_PER_NODE="auto"
    )
    for script in ("torchrun.sh", "train.sh"):
        with launched(script, "--dry-run", recipe, environ={**pod, "PET_MAX_RESTARTS": "3"}) as job:
            code, _, errors = job.finish()
        assert (code, errors.count("\n")) == (2, 1) and errors.startswith("error: PET_MAX_RESTARTS=3 is not read")


@pytest.mark.parametrize("options", [[], ["--quiet"], ["--preflight", "--init-from", "a/folder", "--strict"]], ids=str)
def test_the_run_folder_is_found_among_options(recipe: Path, tmp_path: Path, options: list[str]) -> None:
    """The ends of a job are judged by what lies in it."""
    function = 'set -euo pipefail; source launch/common.sh; run_dir_of "$@"'
    words: list[str | Path] = [recipe, *options, f"run_dir={tmp_path}/a=b", "train.seed=7"]
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", function, "bash", *words], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}/a=b\n"
