"""Every documented exit code of a rank comes through every launcher.

bash tests/run.sh -m slow tests/launch/test_codes.py
bash tests/run.sh -m root tests/launch/test_codes.py    # Slurm's daemons: apt-get install slurm-wlm munge
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_kaiyuan import exit_codes
from tests.helpers.processes.ill_rank import ill_ranks
from tests.helpers.processes.launched import ROOT, launched
from tests.helpers.processes.slurm_cluster import slurm_cluster, wait_for_job

pytestmark = pytest.mark.timeout(600)

OWN = 7  # code of a rank's that no one has documented
CODES = (
    exit_codes.FINISHED,
    exit_codes.FAILED,
    exit_codes.MISTAKE,
    exit_codes.BAD_NODE,
    OWN,
    exit_codes.KILLED,
    *(exit_codes.of_signal(number) for number in (*exit_codes.STOP_SIGNALS, *exit_codes.CRASH_SIGNALS)),
)


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun", "mpich", "msrun"])
def test_launcher(launcher: str, code: int, recipe: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    environ = request.getfixturevalue(launcher) if launcher in ("mpich", "msrun") else {}
    script = "mpirun.sh" if launcher == "mpich" else f"{launcher}.sh"
    options = ["--nproc-per-node", 2, recipe, f"run_dir={tmp_path}/run"]
    with launched(script, *options, environ={**environ, **ill_ranks(tmp_path, code)}) as job:
        found, _, errors = job.finish()
    # The other rank waits for ten minutes.
    assert found == code, errors


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with slurm_cluster() as found:
        interpreter = Path(sys.executable).parent
        yield {**found, "PATH": f"{interpreter}:{found['PATH']}", "VIRTUAL_ENV": str(interpreter.parent)}


@pytest.mark.root
@pytest.mark.parametrize("code", CODES)
def test_slurm(code: int, recipe: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    environ = {**cluster, **ill_ranks(tmp_path, code), "RESTARTS": "0"}
    sbatch = ["sbatch", "--parsable", "--ntasks-per-node=2", f"--output={tmp_path}/log", "launch/slurm.sbatch"]
    done = subprocess.run(
        [*sbatch, str(recipe), f"run_dir={tmp_path}/run"], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    wait_for_job(number, environ)
    shown = subprocess.run(
        ["scontrol", "show", "job", number, "--oneliner"], env=environ, capture_output=True, text=True, check=True
    ).stdout
    assert f" ExitCode={code}:0 " in shown, (tmp_path / "log").read_text()
