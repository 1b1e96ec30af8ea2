"""What pages and recipes' comments name exists: links, files, commands with their options, fields, Python names."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from pydantic import BaseModel

from data_tools.cli import app as data_tools_app
from megatron_kaiyuan.cli import app as kaiyuan_app
from megatron_kaiyuan.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMENTED = [*sorted((ROOT / "launch").rglob("*.yaml")), *sorted((ROOT / "launch").glob("*.s*"))]
FOLDERS = "megatron_kaiyuan|data_tools|csrc|launch|tests|benchmarks|docs"
APPS = {"kaiyuan": typer.main.get_command(kaiyuan_app), "kaiyuan-data": typer.main.get_command(data_tools_app)}


def prose(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text if path in PAGES else "\n".join(re.findall(r"^\s*#(.*)$", text, re.MULTILINE))


def code(path: Path) -> Iterator[str]:
    """Lines of code blocks, and what stands between backticks; a command continued by a backslash is one line."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        yield from re.sub(r"\\\n", " ", block).splitlines()
    for inline in re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield re.sub(r"\s+", " ", inline)


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_there(page: Path) -> None:
    for name in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w\.(?:py|md|sh|h|cpp|yaml|sbatch|txt)\b", prose(page)):
        assert (ROOT / name).exists(), name


def option_names(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def check_command(words: list[str]) -> None:
    """Walk through groups to the command, then look at each option."""
    command: Any = APPS[words[0]]  # typer's own copy of click has the classes
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        names = [name for name in rest.pop(0).split("|") if re.fullmatch(r"[a-z][a-z0-9-]*", name)]
        for name in names:
            assert name in command.commands, f"{' '.join(words)}: no command {name}"
        if len(names) != 1:
            return
        command = command.commands[names[0]]
    known = option_names(command) | option_names(APPS[words[0]])
    for word in rest:
        option = word.partition("=")[0]
        assert not re.fullmatch(r"--[a-z][a-z-]*", option) or option in known, f"{' '.join(words)}: no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_are_there(page: Path) -> None:
    for line in code(page):
        for command in re.split(r"\s*(?:&&|;|\|(?=\s))\s*", line.partition(" # ")[0]):
            try:
                words = shlex.split(command, comments=True)
            except ValueError:  # an apostrophe of prose between backticks
                continue
            while words and words[0] not in APPS and re.match(r"(srun|mpirun|env)$|-\w+$|\d+$|\w+=", words[0]):
                words.pop(0)
            if words and words[0] in APPS:
                check_command(words)


def sections() -> dict[str, type[BaseModel]]:
    return {
        name: kind
        for name, field in RunConfig.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED], ids=lambda path: str(path.relative_to(ROOT)))
def test_fields_of_a_recipe_are_there(page: Path) -> None:
    kinds = sections()
    pattern = rf"(?<![\w./-])({'|'.join(kinds)})\.([a-z]\w*)(?![\w/(.])"
    texts = code(page) if page in PAGES else [prose(page)]
    for text in texts:
        for section, field in re.findall(pattern, text):
            if field not in ("yaml", "json", "py", "jsonl"):
                assert field in kinds[section].model_fields, f"{section}.{field}"


def top_level_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names |= {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
        single: Any = getattr(node, "target", None)
        names |= {single.id} if isinstance(single, ast.Name) else set()
        names |= {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()
        names |= (
            {alias.asname or alias.name for alias in getattr(node, "names", [])}
            if isinstance(node, ast.ImportFrom)
            else set()
        )
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_names_are_there(page: Path) -> None:
    for dotted in re.findall(
        r"(?<![\w/.])(?:megatron_kaiyuan|data_tools|benchmarks|tests)(?:\.\w+)+", "\n".join(code(page))
    ):
        parts = dotted.split(".")
        place = ROOT
        while parts and (place / parts[0]).is_dir():
            place /= parts.pop(0)
        if not parts:
            continue
        file = place / f"{parts[0]}.py"
        if file.exists():
            parts.pop(0)
        else:
            file = place / "__init__.py"
        assert file.exists(), dotted
        assert not parts or parts[0] in top_level_names(file), dotted
