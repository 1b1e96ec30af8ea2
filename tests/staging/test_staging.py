"""An environment is packed, unpacked once a node whoever asks, and works there without the place it came from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.staging import unpack
from megatron_kaiyuan.staging.about import ABOUT, read_about
from megatron_kaiyuan.staging.cold_start import count_calls, file_system
from tests.helpers.processes.launched import ROOT


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small environment with one program; its libraries are those of this one, and stay outside. It is gone."""
    folder = tmp_path_factory.mktemp("shared folder")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    program = folder / "venv" / "bin" / "prefix"
    program.write_text(f"#!{folder}/venv/bin/python\nimport sys\nprint(sys.prefix)\n")
    program.chmod(0o755)
    (folder / "venv" / "bin" / "other-name").hardlink_to(program)
    command: list[str | Path] = [
        folder / "venv" / "bin" / "python",
        "-m",
        "megatron_kaiyuan.staging",
        "pack",
        folder / "env.tar.zst",
    ]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"}
    for output in ("files", "files"):  # the second time over its own product
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.returncode == 0 and output in done.stdout, done.stderr
    (folder / "venv" / "bin" / "more").write_text("")
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "--force" in done.stderr and len(done.stderr.splitlines()) == 1
    (folder / "letter").write_text("mine")
    done = subprocess.run([*command[:-1], folder / "letter", "--force"], env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "is not a packed environment" in done.stderr
    assert (folder / "letter").read_text() == "mine"
    shutil.rmtree(folder / "venv")
    return folder / "env.tar.zst"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(unpack.VARIABLE, str(tmp_path))
    return tmp_path / f"kaiyuan-env-{os.geteuid()}"


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as error:
        unpack.use(file)
    return str(error.value)


def test_works_where_it_is_unpacked(packed: Path, local: Path) -> None:
    """Interpreter, standard library, programs and the project come from this node; the next one that asks waits."""
    command: list[str | Path] = [sys.executable, "-m", "megatron_kaiyuan.staging", "use", packed]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = {one.communicate()[0].strip() for one in both}
    assert len(said) == 1 and [path.name for path in local.iterdir() if path.is_dir()] == [Path(*said).parent.name]
    venv = Path(said.pop())
    began = (venv / "bin" / "prefix").stat().st_ctime_ns
    assert unpack.use(packed) == venv and (venv / "bin" / "prefix").stat().st_ctime_ns == began
    assert subprocess.run([venv / "bin" / "prefix"], capture_output=True, text=True).stdout.strip() == str(venv)
    assert (venv / "bin" / "other-name").read_bytes() == (venv / "bin" / "prefix").read_bytes() != b""
    code = (
        "import os, megatron_kaiyuan, data_tools._index as x; print(os.__file__, megatron_kaiyuan.__file__, x.__file__)"
    )
    done = subprocess.run([venv / "bin" / "python", "-I", "-c", code], capture_output=True, text=True)
    where = done.stdout.split()
    assert len(where) == 3, done.stderr
    if sys.base_prefix != "/usr":
        assert where[0].startswith(str(venv.parent / "base"))
    assert all(path.startswith(str(venv)) for path in where[1:])
    assert (venv.parent / "venv/lib").is_dir() and os.stat(local).st_mode & 0o077 == 0


def test_what_a_cleaner_or_a_kill_left_is_unpacked_again(packed: Path, local: Path) -> None:
    venv = unpack.use(packed)
    (venv / "bin" / "prefix").unlink()
    (local / f"{venv.parent.name}.0123abcd.tmp").mkdir()
    assert unpack.use(packed) == venv and (venv / "bin" / "prefix").exists()
    assert [path.name for path in local.iterdir() if path.is_dir()] == [venv.parent.name]


def test_another_archive_is_another_folder_and_unused_are_removed(packed: Path, local: Path, tmp_path: Path) -> None:
    shutil.copy(packed, tmp_path / "later")  # with a time of its own
    first, second = unpack.use(packed), unpack.use(tmp_path / "later")
    assert first != second
    with subprocess.Popen([second / "bin" / "python", "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(0.3)
        said = list(unpack.clean())
        assert sorted(line.split()[1] for line in said) == ["kept", "removed"]
        assert any(f"process {process.pid}" in line for line in said) and second.exists() and not first.exists()
        process.communicate(b"\n")
    assert [line.split()[1] for line in unpack.clean()] == ["removed"] and not second.exists()


@pytest.mark.parametrize("kept", [0, 100, 5000, -20_000, -1000])
def test_damage_is_one_line_and_leaves_nothing(kept: int, packed: Path, local: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(packed.read_bytes()[:kept])
    line = refusal(damaged)
    assert str(damaged) in line and "pack it again" in line
    assert not any(path.is_dir() for path in local.iterdir())


def test_changed_bytes_are_found(packed: Path, local: Path, tmp_path: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "damaged")
    (tmp_path / "text").write_text("hello")
    assert "not an archive" in refusal(tmp_path / "text")


def test_folder_that_others_can_write_to_is_refused(packed: Path, local: Path, tmp_path: Path) -> None:
    local.mkdir()
    local.chmod(0o777)
    assert unpack.VARIABLE in refusal(packed)
    local.rmdir()
    (tmp_path / "elsewhere").mkdir()
    local.symlink_to(tmp_path / "elsewhere")
    assert unpack.VARIABLE in refusal(packed) and not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_is_one_line(packed: Path, local: Path, tmp_path: Path) -> None:
    """A limit on the size of files, which gives the same kind of error."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.argv[1:] = ['use', sys.argv[1]]; "
        "import runpy; runpy.run_module('megatron_kaiyuan.staging', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, packed], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and unpack.VARIABLE in done.stderr, done.stderr
    assert not any(path.is_dir() for path in local.iterdir())


def test_about(packed: Path) -> None:
    about = read_about(packed)
    assert about.files > 1000 and about.prefix.endswith("/venv") and json.dumps(about.as_json())
    assert ABOUT not in about.as_json()


def test_a_launch_script_uses_it(packed: Path, local: Path) -> None:
    """KAIYUAN_STAGED alone, for whichever script."""
    # The small environment lacks what the project imports at once.
    own = "has_project() { [[ -x $1 ]]; }"
    code = f"source {ROOT}/launch/common.sh; {own}; use_project_environment; command -v python"
    environ = {**os.environ, "KAIYUAN_STAGED": str(packed)}
    done = subprocess.run(["bash", "-euc", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(local)) and done.stdout.strip().endswith("/venv/bin/python")
    environ["KAIYUAN_STAGED"] = "/nowhere/env"
    done = subprocess.run(["bash", "-euc", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "/nowhere/env" in done.stderr and not done.stdout


def test_calls_are_counted_by_place() -> None:
    lines = [
        '7 newfstatat(AT_FDCWD, "/a/venv/lib/x.py", {st_mode=S_IFREG|0644, st_size=1, ...}, 0) = 0',
        '7 newfstatat(AT_FDCWD, "/a", {st_mode=S_IFDIR|0755, st_size=1, ...}, AT_SYMLINK_NOFOLLOW) = 0',
        '7 openat(AT_FDCWD, "/a/venv/lib/x.py", O_RDONLY|O_CLOEXEC) = 3',
        '7 newfstatat(3, "", {st_mode=S_IFREG|0644, st_size=1, ...}, AT_EMPTY_PATH) = 0',
        '7 openat(AT_FDCWD, "/a/base/bin/../lib/os.py", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file)',
        '7 stat("/etc/hosts", 0x7ff) = -1 ENOENT (No such file or directory)',
        "7 +++ exited with 0 +++",
    ]
    found = count_calls(lines, {"environment": Path("/a/venv"), "interpreter": Path("/a/base")})
    # What lies above several places is counted once.
    assert {name: dict(count) for name, count in found.items() if count} == {
        "environment": {"stat": 2, "open": 1},
        "interpreter": {"open": 1},
        "elsewhere": {"stat": 1},
    }
    assert file_system(Path("/proc/self")) == "proc"


@pytest.mark.slow
def test_measure_counts_a_real_start() -> None:
    """With strace; where it is not installed, the command says how to get it, and this fails with that line."""
    command: list[str | Path] = [ROOT / "launch" / "stage_env.sh", "measure", "--platform", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines() if line}
    stats, opens = (int(word.replace(",", "")) for word in rows["all"])
    assert stats > opens > 1000
