from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.training.small_run import succeed, write_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training recipe over real artefacts."""
    return write_recipe(tmp_path_factory.mktemp("small_run"))


@pytest.fixture(scope="session")
def finished_run(recipe: Path) -> Path:
    """The run folder of 20 uninterrupted steps on two data-parallel ranks, FP32, with steps 0, 10 and 20."""
    run_dir = recipe.parent / "uninterrupted"
    succeed(2, recipe, f"run_dir={run_dir}")
    return run_dir
