"""Where a Python machine already keeps real text, by domain. Files are read and parsed, nothing is imported or run."""

from __future__ import annotations

import ast
import gettext
import os
import re
import struct
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from email import message_from_string
from pathlib import Path
from typing import NamedTuple

_MATHEMATICS = ("sympy", "mpmath")
# Programs for testing hold odd encodings and machine-made data; site-packages is not the standard library.
_SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "site-packages", "dist-packages", "_vendor", "idle_test"}
_CHINESE_LOCALES = ("zh_CN", "zh_Hans", "zh_TW", "zh_Hant")
_CHINESE_LETTER = re.compile("[\u4e00-\u9fff]")
_CATALOGUE_CHARACTERS = 2000
LONGEST_TEXT = 50_000


class SourceFile(NamedTuple):
    """A file that may hold documents.

    Attributes:
        name: path from the root of its package or data folder, the same on every machine.
        group: package; the harvest takes from all groups in turn.
        read: gives (place inside the file or "", text) pairs.
    """

    name: str
    group: str
    path: Path
    read: Callable[[Path], Iterable[tuple[str, str]]]


def code_files() -> Iterator[SourceFile]:
    """Sources of the running interpreter's standard library, a document each."""
    for name, path in _python_files(_standard_library()):
        yield SourceFile(name, "", path, _whole_file)


def all_code_files() -> Iterator[SourceFile]:
    """The same and the sources of installed packages, a package a group."""
    yield from code_files()
    for package in _packages():
        if not package.name.endswith(".dist-info"):
            for name, path in _python_files(package):
                yield SourceFile(f"{package.name}/{name}", package.name, path, _whole_file)


def english_files() -> Iterator[SourceFile]:
    """Python's language reference as `pydoc` carries it, docstrings, and the descriptions of installed packages."""
    topics = _standard_library() / "pydoc_data" / "topics.py"
    if topics.is_file():
        yield SourceFile("pydoc_data/topics.py", "pydoc_data", topics, _string_table)
    for name, path in _python_files(_standard_library()):
        yield SourceFile(name, "python", path, _docstrings)
    for package in _packages():
        if package.name.endswith(".dist-info"):
            yield SourceFile(f"{package.name}/METADATA", "metadata", package / "METADATA", _description)
        elif package.name not in _MATHEMATICS:
            for name, path in _python_files(package):
                yield SourceFile(f"{package.name}/{name}", package.name, path, _docstrings)


def mathematics_files() -> Iterator[SourceFile]:
    """Docstrings of the computer algebra packages: definitions, formulas, references, worked examples."""
    for package in _packages():
        if package.name in _MATHEMATICS:
            for name, path in _python_files(package):
                yield SourceFile(f"{package.name}/{name}", package.name, path, _docstrings)


def chinese_files() -> Iterator[SourceFile]:
    """Chinese translations in gettext catalogues, of installed packages and of the system where it has any."""
    roots = [*_packages(), *(Path(folder) / "locale" for folder in _data_folders())]
    for root in roots:
        for locale in _CHINESE_LOCALES:
            for path in sorted(root.glob(f"**/{locale}/LC_MESSAGES/*.mo")):
                name = f"{root.name}/{path.relative_to(root).as_posix()}"
                yield SourceFile(name, f"{root.name}/{locale}", path, _catalogue)


DOMAINS: dict[str, Callable[[], Iterator[SourceFile]]] = {
    "code": code_files,
    "math": mathematics_files,
    "chinese": chinese_files,
    "english": english_files,
}


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _packages() -> list[Path]:
    folders = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir())


def _data_folders() -> list[str]:
    """The system's shared data, as the XDG base directory specification finds it."""
    return [folder for folder in os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":") if folder]


def _python_files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                yield path.relative_to(root).as_posix(), path


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _whole_file(path: Path) -> Iterator[tuple[str, str]]:
    yield "", _cut_at_line(_read_utf8(path))


def _cut_at_line(text: str) -> str:
    """The first LONGEST_TEXT characters of a text, ending with a whole line."""
    if len(text) <= LONGEST_TEXT:
        return text
    return text[: text.rfind("\n", 0, LONGEST_TEXT) + 1]


def _parse(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(_read_utf8(path))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a module, its classes and functions, with the object's qualified name as their place."""
    module = _parse(path)
    if module is not None:
        yield from _docstrings_below(module, "")


def _docstrings_below(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield name, _cut_at_line(ast.get_docstring(node) or "")
    for child in getattr(node, "body", []):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_below(child, f"{name}.{child.name}".lstrip("."))


def _string_table(path: Path) -> Iterator[tuple[str, str]]:
    """The values of a module that is one dictionary of texts."""
    module = _parse(path)
    for node in ast.walk(module) if module else ():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield str(key.value), _cut_at_line(value.value)


def _description(path: Path) -> Iterator[tuple[str, str]]:
    """The long description of an installed package, as its authors wrote it for readers."""
    payload = message_from_string(_read_utf8(path)).get_payload()
    yield "", _cut_at_line(payload) if isinstance(payload, str) else ""


def _catalogue(path: Path) -> Iterator[tuple[str, str]]:
    """The Chinese sentences of a catalogue, joined to documents of about 2,000 characters in catalogue order."""
    document, size, number = [], 0, 0
    for message in _messages(path):
        document.append(message)
        size += len(message)
        if size >= _CATALOGUE_CHARACTERS:
            yield f"part {number}", "\n".join(document)
            document, size, number = [], 0, number + 1
    yield f"part {number}", "\n".join(document)


def _messages(path: Path) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            translations = gettext.GNUTranslations(file)
    except (OSError, ValueError, LookupError, AttributeError, struct.error):
        return
    # The public interface looks up single messages and cannot list a catalogue.
    catalogue: dict[object, str] = getattr(translations, "_catalog", {})
    for key, message in catalogue.items():
        if key != "" and len(_CHINESE_LETTER.findall(message)) >= 6:
            yield message.strip()
