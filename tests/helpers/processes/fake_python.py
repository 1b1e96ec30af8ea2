"""An interpreter that makes environments in no time and writes down what it was asked to install."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.processes.launched import ROOT

_PROGRAM = """#!/bin/sh
home={home}
echo "$*" >>"$home/calls"
case "$*" in
    *check_env.py*--broken*) ;;
    *check_env.py*) [ -e "$home/sound" ] || {{ echo "numpy is missing"; exit 1; }} ;;
    *realpath*) cat "$(dirname "$0")/version" 2>/dev/null || echo "3.11.7 of /opt/python" ;;
    "-m venv "*) mkdir -p "$3/bin" && : >"$3/pyvenv.cfg" && cp "$0" "$3/bin/python" ;;
    *"pip install"*) : >"$home/sound" ;;
    *"pip wheel"*) rest="${{*##*--wheel-dir }}" && : >"${{rest%% -r *}}/one-1.0-py3-none-any.whl" ;;
esac
"""


class FakePython:
    """What launch/make_env.sh finds for PYTHON; what is wrong in its environments is mended by any `pip install`."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "asked").mkdir(parents=True)
        self.program = folder / "asked" / "python"
        self.program.write_text(_PROGRAM.format(home=shlex.quote(str(folder))))
        self.program.chmod(0o755)

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def installed(self) -> list[list[str]]:
        """Files of requirements of each `pip install` that names any."""
        lines = [line for line in self.calls() if "pip install" in line and " -r " in line]
        found = [[Path(word) for word in line.split() if word.endswith(".txt")] for line in lines]
        assert all(file.is_file() for files in found for file in files)
        return [[file.name for file in files] for files in found]

    def source(
        self,
        venv: str,
        *words: str,
        shell: Sequence[str] = ("bash", "-eu"),
        root: Path = ROOT,
        then: str = "",
        cwd: str | Path = "/",
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        """Source launch/setup_env.sh for an environment below this folder, and run what follows in the same shell."""
        # What is wrong in a new environment was not mended in another.
        if not (self.folder / venv.lstrip("/") / "bin" / "python").exists():
            (self.folder / "sound").unlink(missing_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHON": str(self.program),
            "KAIYUAN_VENV": f"{self.folder}{venv}",
            **environ,
        }
        return subprocess.run(
            [*shell, "-c", f". {shlex.quote(str(root))}/launch/setup_env.sh {shlex.join(words)}\n{then}"],
            cwd=cwd,
            env={name: value for name, value in environment.items() if value},
            capture_output=True,
            text=True,
        )
