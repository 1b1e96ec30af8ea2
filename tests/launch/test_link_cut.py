"""Two hosts, as network namespaces with a cable between them that is cut in mid-run. Needs root.

bash tests/run.sh -m root tests/launch/test_link_cut.py
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes.launched import Job, launched
from tests.helpers.training.small_run import losses, metrics

HANG_SECONDS = 12
STEPS = 200
# For a busy machine: the launchers' own end.
SLACK_SECONDS = 60


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def _require_namespaces() -> None:
    tools = all(map(shutil.which, ("ip", "unshare")))
    if not tools or subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True).returncode:
        pytest.fail("two hosts are two network namespaces: run this as root, with iproute2 installed", pytrace=False)


pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
]


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two hosts: 10.77.0.1 and 10.77.0.2, each with an interface of the host's name."""
    _require_namespaces()
    names = [f"kaiyuan{os.getpid()}n{number}" for number in (0, 1)]
    names = [name[-14:] for name in names]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            _ip("netns", "del", name, check=False)


def _start(host: str, number: int, recipe: Path, run_dir: Path) -> contextlib.AbstractContextManager[Job]:
    """The launch script on a host that has its name and its network."""
    named = ["unshare", "--uts", "bash", "-c", 'echo "$0" >/proc/sys/kernel/hostname; exec "$@"', host]
    options = ["--nproc-per-node", 1, "--nnodes", 2, "--node-rank", number, "--rdzv-endpoint", "10.77.0.1:29500"]
    restarts = ["--restarts", 8, "--restart-delay", 5]
    overrides = [
        f"run_dir={run_dir}",
        f"faults.hang_timeout_seconds={HANG_SECONDS}",
        f"train.train_tokens={STEPS * 512}",
    ]
    return launched(
        "torchrun.sh",
        *options,
        *restarts,
        recipe,
        *overrides,
        environ={"GLOO_SOCKET_IFNAME": host},
        inside=["ip", "netns", "exec", host, *named],
    )


def test_job_ends_says_which_node_and_goes_on(hosts: list[str], recipe: Path, tmp_path: Path) -> None:
    with _start(hosts[0], 0, recipe, tmp_path) as first, _start(hosts[1], 1, recipe, tmp_path) as second:
        first.wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) >= 20)
        ranks = first.ranks() + second.ranks()
        assert len(ranks) == 2
        _ip("-n", hosts[1], "link", "set", hosts[1], "down")
        cut, steps = time.monotonic(), len(metrics(tmp_path))
        first.wait_for(lambda: not {*first.ranks(), *second.ranks()} & {*ranks})
        assert time.monotonic() - cut < HANG_SECONDS + SLACK_SECONDS
        time.sleep(10)
        _ip("-n", hosts[1], "link", "set", hosts[1], "up")
        ends = [first.finish(), second.finish()]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert f"rank 1 does not answer (host {hosts[1]}, process " in ends[0][2]
    assert "the store at 10.77.0.1:29500 does not answer" in ends[1][2]
    assert all("; restart 1 of 8 without a newer checkpoint, from step " in output for _, output, _ in ends)
    assert len(losses(tmp_path)) == STEPS > steps
