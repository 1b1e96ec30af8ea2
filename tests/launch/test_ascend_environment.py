"""launch/env_ascend.sh in real shells, on a machine that has no NPU."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT, launched

SETTINGS_FILE = ROOT / "launch" / "env_ascend.sh"
CACHE = Path(f"/var/tmp/kaiyuan-operators-{os.getuid()}")
SETTINGS = {
    "TORCH_NPU_DEVICE_CAPABILITY": "7.5",
    "HCCL_CONNECT_TIMEOUT": "1200",
    "HCCL_DETERMINISTIC": "true",
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    "ACL_OP_COMPILER_CACHE_DIR": str(CACHE),
    "ASCEND_GLOBAL_LOG_LEVEL": "3",
    "ASCEND_SLOG_PRINT_TO_STDOUT": "0",
}

# CANN's paths are set already, as its images have it.
IMAGE = {"ASCEND_HOME_PATH": "/image"}


def sourced(home: Path, **environ: str) -> dict[str, str]:
    """What the file leaves in the environment of `set -euo pipefail`, as the launch scripts have it."""
    script = f"set -euo pipefail; source {SETTINGS_FILE}; env -0"
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": os.environ["PATH"], "HOME": str(home), **environ}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    found = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    return {name: value for name, value in found.items() if name not in ("PATH", "HOME", "PWD", "SHLVL", "_")}


def test_defaults_and_nothing_else(tmp_path: Path) -> None:
    assert sourced(tmp_path, **IMAGE) == {**IMAGE, **SETTINGS}
    assert CACHE.owner() and stat.S_IMODE(CACHE.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_set_wins(name: str, tmp_path: Path) -> None:
    assert sourced(tmp_path, **IMAGE, **{name: "mine"}) == {**IMAGE, **SETTINGS, name: "mine"}


def test_settings_that_exclude_ours(tmp_path: Path) -> None:
    """torch_npu refuses both names of the allocator; CANN's own variable says where caches are."""
    found = sourced(tmp_path, **IMAGE, PYTORCH_ALLOC_CONF="max_split_size_mb:32", ASCEND_CACHE_PATH="/local")
    assert "PYTORCH_NPU_ALLOC_CONF" not in found and "ACL_OP_COMPILER_CACHE_DIR" not in found


@pytest.mark.parametrize("folders", [("cann", "ascend-toolkit"), ("ascend-toolkit",)])
def test_cann_is_found_and_may_read_what_is_not_set(folders: tuple[str, ...], tmp_path: Path) -> None:
    for folder in folders:
        path = tmp_path / "Ascend" / folder
        path.mkdir(parents=True)
        (path / "set_env.sh").write_text(f'export LD_LIBRARY_PATH="{path}:$LD_LIBRARY_PATH" ASCEND_HOME_PATH={path}')
    chosen = str(tmp_path / "Ascend" / folders[0])
    found = sourced(tmp_path)
    assert (found["ASCEND_HOME_PATH"], found["LD_LIBRARY_PATH"]) == (chosen, f"{chosen}:")
    # An image that has sourced it already, and a place of the site's own.
    assert sourced(tmp_path, **IMAGE) == {**IMAGE, **SETTINGS}
    own = tmp_path / "own"
    own.mkdir()
    (own / "set_env.sh").write_text("export ASCEND_HOME_PATH=own")
    assert sourced(tmp_path, ASCEND_TOOLKIT=str(own))["ASCEND_HOME_PATH"] == "own"


def test_address_of_one_host_goes_to_no_other() -> None:
    environ = {"ASCEND_RT_VISIBLE_DEVICES": "0", "HCCL_IF_IP": "10.0.0.1"}
    with launched("mpirun.sh", "--hosts", "a,b", "recipe.yaml", environ=environ) as job:
        code, _, errors = job.finish()
    assert (code, errors.count("\n")) == (2, 1) and "set HCCL_SOCKET_IFNAME instead" in errors
