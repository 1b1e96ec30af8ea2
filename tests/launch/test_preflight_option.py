"""`--preflight` of the launch scripts: passed on, a start after it, and a bad node that ends the script with 3.

bash tests/run.sh -m slow tests/launch/test_preflight_option.py
bash tests/run.sh -m root tests/launch/test_slurm_ends.py -k preflight     # the same under Slurm
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes
from megatron_kaiyuan.exit_codes import BAD_NODE
from tests.helpers.processes.ill_driver import ill_driver
from tests.helpers.processes.launched import launched, succeed
from tests.helpers.processes.ranks import free_port
from tests.helpers.training.small_run import losses

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
def test_the_ranks_get_the_option(script: str, recipe: Path) -> None:
    for option in ([], ["--preflight"]):
        output = succeed(
            script, *option, "--dry-run", "--nproc-per-node", 2, recipe, environ={"KAIYUAN_VENV": sys.prefix}
        )
        (line,) = (line for line in output.splitlines() if line.startswith("launch: "))
        assert ("'train' '--preflight'" in line) == bool(option)


# What starts two ranks: the script, and how many nodes it is called on.
LAUNCHERS = {
    "torchrun": ("torchrun.sh", 1),
    "two torchruns": ("torchrun.sh", 2),
    "mpirun": ("mpirun.sh", 1),
    "mpich": ("mpirun.sh", 1),
    "msrun": ("msrun.sh", 1),
    "two msruns": ("msrun.sh", 2),
}


def _end(
    launcher: str, words: Sequence[object], folders: Sequence[Path], request: pytest.FixtureRequest
) -> list[tuple[int, str, str]]:
    """Run `--preflight` and training of two ranks to the end; exit code, output and errors on each node.

    Args:
        folders: for each node, what comes first on PATH.
    """
    script, nodes = LAUNCHERS[launcher]
    name = "mpich" if launcher == "mpich" else script.removesuffix(".sh")
    environ: dict[str, str] = request.getfixturevalue(name) if name in ("mpich", "msrun") else {}
    port = free_port()
    options: list[str | int] = ["--preflight", "--nproc-per-node", 2 // nodes]
    address: list[str | int] = (
        ["--rdzv-endpoint", f"localhost:{port}"] if script == "torchrun.sh" else ["--master-addr", "127.0.0.1"]
    )
    address += ["--master-port", port] if script == "msrun.sh" else []
    path = environ.get("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with ExitStack() as stack:
        jobs = []
        for number, first in enumerate(folders):
            place = [*address, "--nnodes", nodes, "--node-rank", number] if nodes > 1 else []
            own = {"SLURMD_NODENAME": f"node{number}", "PATH": f"{first}:{path}"}
            jobs.append(stack.enter_context(launched(script, *options, *place, *words, environ={**environ, **own})))
        return [job.finish() for job in jobs]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_after_its_preflight(
    launcher: str,
    recipe: Path,
    losses_under_torchrun: list[float],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The preflight of ranks that mpirun starts holds a store of its own, those of torchrun use the agent's."""
    folders = [tmp_path] * LAUNCHERS[launcher][1]
    ends = _end(launcher, [recipe, f"run_dir={tmp_path}/run"], folders, request)
    assert [code for code, _, _ in ends] == [0] * len(ends), ends
    said = "".join(output + errors for _, output, errors in ends)
    found = re.findall(r"preflight: 2 ranks on (\d) nodes are in order, \d+\.\d s", said)
    assert found == [str(len(ends))]
    assert losses(tmp_path / "run") == losses_under_torchrun and read_bad_nodes(tmp_path / "run") is None


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_bad_node(launcher: str, recipe: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A driver that reports an ill device on the last node: nothing is trained, and every node ends with 3."""
    nodes = LAUNCHERS[launcher][1]
    folders = [*[tmp_path] * (nodes - 1), ill_driver(tmp_path / "ill")]
    ends = _end(launcher, [recipe, f"run_dir={tmp_path}/run"], folders, request)
    assert [code for code, _, _ in ends] == [BAD_NODE] * nodes, ends
    said, name = "".join(output + errors for _, output, errors in ends), f"node{nodes - 1}"
    assert said.count(f"error: preflight: bad nodes {name}: health: GPU 00000000:01:00.0") == 1
    found = read_bad_nodes(tmp_path / "run")
    assert found is not None and found.hosts == [name] and "remapped_row_failure is Yes" in found.why
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
