"""make_env.sh --wheels fetches all that a set-up without a network asks for: with small packages only, but for real.

Needs a package index, or what pip is given instead, and compiles the extensions without optimisation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT

# What `kaiyuan --version` and `kaiyuan init` import.
SMALL = [
    "jinja2",
    "numpy",
    "omegaconf",
    "orjson",
    "packaging",
    "psutil",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "tqdm",
    "typer",
    "xxhash",
    "zstandard",
]
NO_NETWORK = ["unshare", "--map-root-user", "--net"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project, as if it needed the small packages only."""
    tree = tmp_path / "project"
    for name in ("csrc", "data_tools", "docs", "launch", "megatron_kaiyuan"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml", "requirements-build.txt"):
        shutil.copy(ROOT / name, tree / name)
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    kept = [line for line in pins if line.partition("==")[0] in SMALL]
    assert len(kept) == len(SMALL)
    (tree / "requirements.txt").write_text("\n".join(kept))
    setup = (ROOT / "setup.py").read_text().replace("install_requires=INSTALL_REQUIRES", "install_requires=[]")
    (tree / "setup.py").write_text(setup.replace('"-O3"', '"-O0"'))
    return tree


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_wheelhouse_is_enough(project: Path, tmp_path: Path) -> None:
    if subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a namespace without a network")
    script: list[str | Path] = ["bash", project / "launch" / "make_env.sh"]
    environ = {name: value for name, value in os.environ.items() if name != "KAIYUAN_VENV"}
    done = subprocess.run([*script, "--wheels", tmp_path / "w"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "w").glob("*.whl"))) > len(SMALL) and not (project / ".venv").exists()

    # An index that was asked would be waited for; there is none to reach.
    offline = {**environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "w"), "PIP_CONFIG_FILE": os.devnull}
    offline.pop("PIP_EXTRA_INDEX_URL", None)
    done = subprocess.run([*NO_NETWORK, *script], env=offline, capture_output=True, text=True)
    assert done.returncode == 0 and "set-up: ready" in done.stdout, done.stderr
    kaiyuan = project / ".venv" / "bin" / "kaiyuan"
    done = subprocess.run([*NO_NETWORK, kaiyuan, "init", tmp_path / "mine"], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "mine" / "train.yaml").exists(), done.stderr

    # A folder that lacks one is an error that names it.
    next((tmp_path / "w").glob("typer-*.whl")).unlink()
    shutil.rmtree(project / ".venv")
    done = subprocess.run([*NO_NETWORK, *script], env=offline, capture_output=True, text=True)
    assert done.returncode == 1 and "typer" in done.stderr
