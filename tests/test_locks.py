from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.locks import lock


def _without_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("has_locks", [True, False])
def test_one_process_at_a_time_also_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", _without_locks)
    (tmp_path / "link").symlink_to(tmp_path)
    with lock(tmp_path / "lock", keep=False) as held:
        assert held == has_locks
        with pytest.raises(UserError, match="another process is at work there"), lock(tmp_path / "lock", seconds=0.1):
            pass
        with (
            pytest.raises(UserError, match="another process is at work there"),
            lock(tmp_path / "link" / "lock", seconds=0.1),
        ):
            pass
        with lock(tmp_path / "other", keep=False):
            pass
    with lock(tmp_path / "lock", keep=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_without_locks_a_killed_holder_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import fcntl, os, pathlib, sys\n"
        "from megatron_kaiyuan.locks import lock\n"
        "def none(*_): raise OSError(37, 'No locks available')\n"
        "fcntl.flock = none\n"
        "with lock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "lock"]).returncode == -9
    monkeypatch.setattr(fcntl, "flock", _without_locks)
    with lock(tmp_path / "lock", seconds=0.1):
        pass


def test_a_file_of_the_users_with_the_name_of_a_lock_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("mine")
    with lock(tmp_path / "lock", keep=False):
        pass
    assert (tmp_path / "lock").read_text() == "mine"
