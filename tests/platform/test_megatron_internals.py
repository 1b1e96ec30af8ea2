"""What this project uses inside Megatron Core is there in the installed version; an upgrade fails here first."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from megatron_kaiyuan.platform import activate
from megatron_kaiyuan.platform.megatron import INTERNALS, MODULES_THAT_NAME_CUDA

PACKAGE = Path(__file__).parents[2] / "megatron_kaiyuan"


@pytest.fixture(scope="module", autouse=True)
def cpu() -> None:
    activate("cpu")


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, names in INTERNALS.items() for name in names])
def test_is_there(place: str, name: str) -> None:
    modules, _, last = place.rpartition(".")
    if last[0].isupper():
        owner = getattr(importlib.import_module(f"megatron.core.{modules}"), last)
        # What instances get is in the source of the class, or of one that it is made from.
        sources = "".join(inspect.getsource(base) for base in owner.__mro__[:-1])
        assert hasattr(owner, name) or re.search(rf"self\.{name}\b.* = ", sources), (
            f"megatron.core.{place} has no {name}"
        )
    else:
        owner = importlib.import_module(f"megatron.core.{place}")
        # Imported from Apex or Transformer Engine where these are installed, and by a name of the module's own else.
        assert hasattr(owner, name) or name in inspect.getsource(owner), f"megatron.core.{place} has no {name}"


@pytest.mark.parametrize("name", MODULES_THAT_NAME_CUDA)
def test_module_still_names_cuda(name: str) -> None:
    """One that does not need not be in the list."""
    source = inspect.getsource(importlib.import_module(f"megatron.core.{name}"))
    assert "torch.cuda" in source or 'device="cuda"' in source or "device='cuda'" in source


def test_nothing_else_reaches_inside() -> None:
    """No other file names an underscored attribute that is listed, or imports an underscored name of Megatron Core."""
    listed = {name for names in INTERNALS.values() for name in names if name.startswith("_")}
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "megatron.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in listed and ast.unparse(node.value) != "self":
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron.core"):
                found += [f"{path.relative_to(PACKAGE)}: {a.name}" for a in node.names if a.name.startswith("_")]
    assert not found
