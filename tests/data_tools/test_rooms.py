"""The rooms of `data_tools`: imports go one way."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "data_tools"
IMPORT = re.compile(r"^\s*from data_tools\.(\w+)\S* import", re.MULTILINE)


def test_no_room_imports_one_that_imports_it():
    rooms = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert {
        "corpora",
        "engines",
        "reading",
        "steps",
        "tokenizers",
        "preprocessing",
        "curriculum",
        "harvesting",
        "windows",
    } <= rooms
    imports = {
        room: {name for path in (FOLDER / room).rglob("*.py") for name in IMPORT.findall(path.read_text())} - {room}
        for room in rooms
    }
    assert imports["preprocessing"] == {"corpora", "engines", "reading", "tokenizers"}
    assert list(TopologicalSorter(imports).static_order())
    assert not any("cli" in names for names in imports.values())
    # What is not in a room is the roof.
    roof = {"__init__.py", "__main__.py", "cli.py", "cli_documents.py", "cli_options.py", "cli_order.py"}
    assert {path.name for path in FOLDER.glob("*.py")} == roof
