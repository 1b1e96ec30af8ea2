from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import megatron_kaiyuan

TELL = "from megatron_kaiyuan.versions import git_state, versions; print(git_state()); print(sorted(versions()))"


def tell(folder: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", TELL], cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


def test_commit_and_whether_files_differ(tmp_path: Path) -> None:
    package = tmp_path / "megatron_kaiyuan"
    package.mkdir()
    for name in ("__init__.py", "versions.py"):
        shutil.copy(Path(megatron_kaiyuan.__file__).with_name(name), package / name)
    assert tell(tmp_path) == ["None", "['megatron_core', 'megatron_kaiyuan', 'numpy', 'python', 'torch']"]

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    git("add", "megatron_kaiyuan/__init__.py", "megatron_kaiyuan/versions.py")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert tell(tmp_path)[0] == str({"commit": commit, "dirty": False})
    with open(package / "__init__.py", "a") as file:
        file.write("# changed\n")
    assert tell(tmp_path)[0] == str({"commit": commit, "dirty": True})


def test_fingerprint_of_the_code_is_that_of_its_files(tmp_path: Path) -> None:
    """Another folder, the same code; a file's content and its name both count, compiled files do not."""
    code = "from megatron_kaiyuan.versions import source_fingerprint; print(source_fingerprint())"

    def fingerprint(folder: Path) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True
        ).stdout.decode()

    found = []
    for name in ("one", "two"):
        package = tmp_path / name / "megatron_kaiyuan"
        package.mkdir(parents=True)
        for file in ("__init__.py", "versions.py"):
            shutil.copy(Path(megatron_kaiyuan.__file__).with_name(file), package / file)
        found.append(fingerprint(tmp_path / name))
    assert found[0] == found[1] == fingerprint(tmp_path / "two")
    (package / "more.py").write_text("")
    found.append(fingerprint(tmp_path / "two"))
    (package / "more.py").rename(package / "other.py")
    found.append(fingerprint(tmp_path / "two"))
    assert len(set(found)) == 3
