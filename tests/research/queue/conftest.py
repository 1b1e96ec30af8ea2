from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.training.run_lists import write_inputs


@pytest.fixture(scope="session")
def queue_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with held-out corpora beside it."""
    return write_inputs(tmp_path_factory.mktemp("queue_inputs"))
