from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.training.small_probe import write_probe


@pytest.fixture(scope="session")
def probe_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`probes.yaml` of three windows of two parts, with all that it names."""
    return write_probe(tmp_path_factory.mktemp("probe"))
