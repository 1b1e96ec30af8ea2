from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.processes.launched import succeed
from tests.helpers.processes.other_launchers import mpich_environ, msrun_environ
from tests.helpers.training.small_run import losses, write_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps over real artefacts, with a checkpoint after every second one; there are tokens for hundreds."""
    return write_recipe(tmp_path_factory.mktemp("launch"), save_every_steps=2, documents=8000)


@pytest.fixture(scope="session")
def mpich(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which MPICH comes first."""
    return mpich_environ(tmp_path_factory.mktemp("mpich"))


@pytest.fixture(scope="session")
def msrun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which MindSpore comes first."""
    return msrun_environ(tmp_path_factory.mktemp("msrun"))


@pytest.fixture(scope="session")
def losses_under_torchrun(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of two ranks on one node."""
    run_dir = tmp_path_factory.mktemp("torchrun")
    succeed("torchrun.sh", "--nproc-per-node", 2, recipe, f"run_dir={run_dir}")
    found = losses(run_dir)
    assert len(found) == 20
    return found
