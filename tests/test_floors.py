"""The lowest versions that setup.py allows: commands that need no torch, run with exactly those.

Needs a package index, or what pip is told instead (PIP_INDEX_URL, PIP_FIND_LINKS); about 200 MB in a temporary folder.
"""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# Too large to install for this, and needed by training alone.
LARGE = {"torch", "megatron-core"}
# Versions by the year, whose major number says nothing.
CALENDAR = {"fsspec", "packaging"}
COMMANDS = """
kaiyuan-data tokenizer train --input texts.jsonl --vocab-size 600 --output tokenizer.json
kaiyuan-data tokenizer inspect tokenizer.json texts.jsonl
kaiyuan-data dedup --input texts.jsonl --output unique
kaiyuan-data score --input unique --output scored --scorer rules
kaiyuan-data audit scored --score rules_gopher --by domain --output audit.html
kaiyuan-data preprocess --input texts.jsonl --output-prefix web --tokenizer-model tokenizer.json --score-keys score
kaiyuan-data verify web_text_document
kaiyuan-data inspect web_text_document
kaiyuan init mine --corpus web=web_text_document
kaiyuan-data curriculum mine/order.yaml --output mine/phases
kaiyuan-data report mine/order.yaml --phases mine/phases
kaiyuan train mine/train.yaml --check
kaiyuan plan mine/train.yaml --gpus 2 --gpu h100
"""
PROGRAMS = {"kaiyuan": "megatron_kaiyuan.cli", "kaiyuan-data": "data_tools.cli"}


def ranges() -> list[Requirement]:
    """INSTALL_REQUIRES of setup.py."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "INSTALL_REQUIRES":
            return [Requirement(text) for text in ast.literal_eval(statement.value)]
    raise AssertionError("setup.py has no INSTALL_REQUIRES")


def floor(one: Requirement) -> str:
    lowest = [item.version for item in one.specifier if item.operator == ">="]
    assert lowest, f"{one.name} has no lowest version in setup.py"
    return f"{one.name}=={lowest[0]}"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floors") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    small = [floor(one) for one in ranges() if one.name not in LARGE]
    done = subprocess.run([*pip, *small], capture_output=True, text=True)
    assert done.returncode == 0, f"this test needs a package index; pip says: {done.stderr[-2000:]}"
    return folder / "bin" / "python"


def test_ranges_have_two_ends_and_hold_what_is_tested() -> None:
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        pins[name] = version
    for one in ranges():
        assert floor(one) and one.specifier.contains(pins[one.name]), one
        assert one.name in CALENDAR or any(item.operator == "<" for item in one.specifier), one


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_commands_run_with_the_lowest_versions(python: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    words = [line for path in sorted((ROOT / "docs").glob("*.md")) for line in path.read_text().split()]
    with open(tmp_path / "texts.jsonl", "w") as file:
        for number in range(300):
            row = {"text": " ".join(draw.choices(words, k=150)), "domain": f"d{number % 2}", "score": draw.random()}
            file.write(json.dumps(row) + "\n")
    helps = [f"{program} --help" for program in PROGRAMS]
    for line in [*helps, *COMMANDS.strip().splitlines()]:
        program, *arguments = line.split()
        done = subprocess.run(
            [python, "-m", PROGRAMS[program], *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert (tmp_path / "mine" / "phases" / "report.html").stat().st_size > 1000
