"""What a source archive and a wheel hold, built by setuptools from a copy of the project; nothing is compiled."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Only a checkout has use for them.
NOT_SHIPPED = {".gitignore"}
SDIST = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout, so what belongs to the project is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    folder = tmp_path_factory.mktemp("project")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *command: object, **environ: str) -> str:
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(
        arguments, cwd=folder, env={"PATH": "/usr/bin:/bin", **environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_source_archive_holds_the_whole_project(project: Path) -> None:
    """Tests, pages, launch scripts and recipes too, with their permissions."""
    name = run(project, "-c", SDIST).splitlines()[-1]
    with tarfile.open(project / "dist" / name) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers() if member.isfile()}
    tracked = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    ours = {name for name in tracked if not name.startswith("dist/") and ".egg-info/" not in name}
    assert len(ours) > 500 and ours - members.keys() == NOT_SHIPPED
    assert members["launch/train.sh"].mode & 0o111


def test_wheel_holds_scripts_recipes_and_pages(project: Path, tmp_path: Path) -> None:
    """`kaiyuan init` of what is installed writes the files that the checkout has."""
    run(project, "setup.py", "-q", "build_py", "--build-lib", tmp_path / "installed")
    for extension in (ROOT / "megatron_kaiyuan" / "data").glob("*.so"):
        shutil.copy(extension, tmp_path / "installed" / "megatron_kaiyuan" / "data")
    code = """
from megatron_kaiyuan.starter import init, shipped
from pathlib import Path
installed = Path("installed/megatron_kaiyuan/starter").absolute()
assert shipped.shipped("launch").parent == Path(shipped.__file__).parent == installed
init.init(Path("mine"), [], "kaiyuan-tiny", "score")
"""
    run(tmp_path, "-c", code, PYTHONPATH=str(tmp_path / "installed"))
    written = [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert len(written) > 30
    for path in written:
        source = ROOT / path.relative_to(tmp_path / "mine")
        assert path.name in ("environment", "order.yaml", "train.yaml") or path.read_bytes() == source.read_bytes()
    assert not list((tmp_path / "installed").rglob("test_*"))


def test_metadata(project: Path, tmp_path: Path) -> None:
    run(project, "setup.py", "-q", "egg_info", "--egg-base", tmp_path)
    found = email.message_from_string((tmp_path / "megatron_kaiyuan.egg-info" / "PKG-INFO").read_text())
    assert str(found.get_payload()).startswith("# Megatron Kaiyuan")
    assert found["Description-Content-Type"] == "text/markdown"
    assert "Operating System :: POSIX :: Linux" in found.get_all("Classifier", [])
    assert any("arxiv.org/abs/2512.07612" in url for url in found.get_all("Project-URL", []))
