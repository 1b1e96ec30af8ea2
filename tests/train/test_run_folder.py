"""A run writes into a new folder or an earlier run's, and into nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.train.run_folder import require_run_folder


def test_free_folders(tmp_path: Path) -> None:
    require_run_folder(tmp_path / "new" / "run")
    (tmp_path / "notes.md").write_text("other files may lie there")
    require_run_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "latest", "checkpoints", "lock"])
def test_a_file_that_a_run_would_write_over_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: is not part of a run; name another run_dir"):
        require_run_folder(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_that_cannot_hold_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"exists and is not a run|is not a folder"):
            require_run_folder(place)
