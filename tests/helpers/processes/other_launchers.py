"""Launchers from PyPI in an environment of their own, because they cannot share one with the project's."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

# As its own list of requirements would bring, without what the project has in other versions.
_MINDSPORE = ["mindspore==2.10.0", "asttokens", "astunparse", "wheel"]


def mpich_environ(folder: Path) -> dict[str, str]:
    """Install MPICH; the environment in which it comes first on PATH."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--prefix", str(folder), "mpich==5.0.2"]
    subprocess.run(pip, check=True)
    return {"PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def msrun_environ(folder: Path) -> dict[str, str]:
    """Install MindSpore for CPU (2.8 GB), or use KAIYUAN_TEST_MSRUN; the environment in which it comes first."""
    given = os.environ.get("KAIYUAN_TEST_MSRUN")
    if not given:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (packages / "project.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--no-deps", *_MINDSPORE], check=True)
    found = given or str(folder)
    return {"VIRTUAL_ENV": found, "PATH": f"{found}/bin:{os.environ['PATH']}"}
