"""launch/slurm.sbatch with KAIYUAN_STAGED: each node unpacks the environment, and its ranks run from there.

apt-get install slurm-wlm munge
bash tests/run.sh -m root tests/launch/test_slurm_staged.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT
from tests.helpers.processes.slurm_cluster import slurm_cluster, wait_for_job
from tests.helpers.training.small_run import losses

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

# Python imports it at the start of every process: where a rank's interpreter and its project are.
RECORDER = """
import importlib.util, json, os, sys
words = open("/proc/self/cmdline").read().split("\\0")
if "megatron_kaiyuan.cli" in words and "--check" not in words and "megatron_kaiyuan.cluster.first_failure" not in words:
    found = [sys.prefix, importlib.util.find_spec("megatron_kaiyuan").origin]
    with open(os.path.join(os.environ["RECORDS"], os.environ["SLURM_PROCID"]), "w") as file:
        json.dump([os.environ["SLURMD_NODENAME"], *found], file)
"""


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with slurm_cluster(nodes=2) as found:
        interpreter = Path(sys.executable).parent
        yield {**found, "PATH": f"{interpreter}:{found['PATH']}", "VIRTUAL_ENV": str(interpreter.parent)}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the project, which finds the libraries of this one; where it came from, it is gone."""
    folder = tmp_path_factory.mktemp("shared")
    venv, file = folder / "venv", folder / "env.tar.zst"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    pack: list[str | Path] = ["bash", ROOT / "launch" / "stage_env.sh", "pack", file]
    done = subprocess.run(
        pack,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "KAIYUAN_VENV": str(venv)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and file.exists(), done.stderr
    shutil.rmtree(venv)
    return file


def test_ranks_run_from_the_nodes_own_disk(
    packed: Path, recipe: Path, losses_under_torchrun: list[float], environ: dict[str, str], tmp_path: Path
) -> None:
    records, stage = tmp_path / "records", tmp_path / "node's disk"
    records.mkdir()
    stage.mkdir()
    (tmp_path / "sitecustomize.py").write_text(RECORDER)
    # The nodes' names, node1 and node2, lead to no address.
    own = {"PYTHONPATH": str(tmp_path), "RECORDS": str(records), "RESTARTS": "0", "MASTER_ADDR": "127.0.0.1"}
    staged = {"KAIYUAN_STAGED": str(packed), "KAIYUAN_STAGE_DIR": str(stage)}
    sbatch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/log"]
    done = subprocess.run(
        [*sbatch, "launch/slurm.sbatch", str(recipe), f"run_dir={tmp_path}/run"],
        cwd=ROOT,
        env={**environ, **own, **staged},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wait_for_job(done.stdout.strip(), environ, seconds=600)
    log = (tmp_path / "log").read_text()
    ranks = [json.loads(path.read_text()) for path in sorted(records.iterdir())]
    assert [node for node, _, _ in ranks] == ["node1", "node2"], log
    assert all(path.startswith(str(stage)) for _, *paths in ranks for path in paths), ranks
    assert losses(tmp_path / "run") == losses_under_torchrun, log


def test_a_file_that_no_node_sees(recipe: Path, environ: dict[str, str], tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.tar.zst"
    sbatch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/log"]
    done = subprocess.run(
        [*sbatch, "launch/slurm.sbatch", str(recipe), f"run_dir={tmp_path}/run"],
        cwd=ROOT,
        env={**environ, "KAIYUAN_STAGED": str(missing)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wait_for_job(done.stdout.strip(), environ, seconds=300)
    log = (tmp_path / "log").read_text()
    assert f"error: KAIYUAN_STAGED={missing} could not be unpacked on every node" in log and "Traceback" not in log
    assert not (tmp_path / "run").exists()
