"""The torch_npu of torch's own version, from the package index: unpacked into a cache, never installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.locks import lock

_ROOT = Path(__file__).parents[3]


def cache() -> Path:
    """Where the wheel and the built stubs are kept between test runs."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "megatron_kaiyuan" / "ascend"


def unpacked() -> Path:
    """The folder to import torch_npu from.

    Raises:
        RuntimeError: the wheel is not to be had, with pip's last line.
    """
    version = _version()
    folder = cache() / f"torch_npu-{version}-{sys.implementation.cache_tag}-{os.uname().machine}"
    if not folder.exists():
        with lock(folder.with_name(f"{folder.name}.lock"), seconds=600):
            if not folder.exists():
                _download(version, folder)
    return folder


def _version() -> str:
    pinned = re.search(r"^torch==(\S+)", (_ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    return pinned[1]


def _download(version: str, folder: Path) -> None:
    wanted = f"torch-npu=={version}"
    with tempfile.TemporaryDirectory() as download:
        # Its dependencies are torch itself and what this environment has.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            download,
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"{wanted} cannot be downloaded, and platform npu cannot be tested without: {reason}")
        (wheel,) = Path(download).glob("*.whl")
        with atomic_path(folder) as temporary, zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary)
