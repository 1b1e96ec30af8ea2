"""Which code made something: what a checkpoint says about it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from megatron_kaiyuan import __version__

_PACKAGES = {"megatron_core": "megatron-core", "torch": "torch", "numpy": "numpy"}
_SECONDS = 10


def versions() -> dict[str, str]:
    """Versions of this project, Python and the packages that a checkpoint's content depends on."""
    found = {"megatron_kaiyuan": __version__, "python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def source_fingerprint() -> str:
    """XXH3 of this package's Python files, which a cluster's copies of it can be compared by without git."""
    folder = Path(__file__).resolve().parent
    digest = xxhash.xxh3_64()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return f"xxh3:{digest.hexdigest()}"


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether files in it differ; None outside of one."""
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": _git(folder, "status", "--porcelain", "--untracked-files=no") != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
