"""Tests import helpers from tests/helpers, and never one test module from another."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Programs with modules of their own: python -m tests.faults, python -m tests.fuzz.
PROGRAMS = ("faults", "fuzz")


def imported(source: str) -> set[str]:
    """Dotted names of all modules that a source imports, wherever in it, and of what it takes from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
    return found


def of_tests(source: str, allowed: tuple[str, ...], modules: set[str]) -> set[str]:
    """Names that a source imports from tests/, apart from those allowed."""
    names = {name for name in imported(source) if name.split(".")[0] in {"tests", "", *modules}}
    return {name for name in names if not name.startswith(tuple(f"tests.{one}." for one in allowed))}


def test_helpers_come_from_the_helpers_package() -> None:
    paths = sorted(TESTS.rglob("*.py"))
    modules = {path.stem for path in paths}
    for path in paths:
        folder = path.relative_to(TESTS).parts[0]
        allowed = ("helpers", folder) if folder in PROGRAMS else ("helpers",)
        assert of_tests(path.read_text(encoding="utf-8"), allowed, modules) == set(), path


@pytest.mark.parametrize(
    "line", ["from test_resume import load", "import test_resume", "from tests.train import test_resume",
             "from tests.fuzz.target import Target", "from .test_resume import load", "from tests import conftest"],
)  # fmt: skip
def test_another_import_is_found(line: str) -> None:
    assert of_tests(f"def test() -> None:\n    {line}\n", ("helpers",), {"test_resume"})
    assert not of_tests("from tests.helpers.training.small_run import run\n", ("helpers",), {"test_resume"})


def test_no_two_test_modules_have_one_name() -> None:
    """pytest imports a test module by its file name alone, as its folder has no __init__.py."""
    counts = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []
