"""The files that a local folder or pattern stands for: each one once, and none left out without a word."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

from megatron_kaiyuan.errors import UserError

Identity = tuple[int, int]
_SHOWN = 5
_HIDDEN = (".", "_")


class Listing(NamedTuple):
    """What was found.

    Attributes:
        files: paths in the order of names, no file twice.
        left_out: what else is there, as it is to be shown.
    """

    files: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        """What was left out; "" where nothing was."""
        more = len(self.left_out) - _SHOWN
        shown = ", ".join(self.left_out[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        return f"left out {shown}" if shown else ""


def list_folder(folder: str, is_known: Callable[[str], bool]) -> Listing:
    """The files of a folder and all below it whose names are known; links are followed, and cycles of them end.

    Hidden ones, whose names begin with "." or "_", are left out.

    Raises:
        UserError: a folder cannot be listed, or a link leads nowhere.
    """
    files: list[str] = []
    left_out: list[str] = []
    for below, entries in _folders(folder, _HIDDEN):
        for entry in entries:
            path = str(Path(below, entry.name))
            shown = os.path.relpath(path, folder)
            if entry.name.startswith(_HIDDEN):
                left_out.append(f"{shown} (hidden)")
                continue
            mode = state_of(path).st_mode
            if stat.S_ISREG(mode) and is_known(path):
                files.append(path)
            elif not stat.S_ISDIR(mode):
                left_out.append(shown if stat.S_ISREG(mode) else f"{shown} (not a file)")
    return _each_once(folder, files, left_out)


def list_pattern(pattern: str) -> Listing:
    """The files that match a pattern, of any name; with "**" at any depth, through links too, where cycles end.

    What begins with "." matches only a part that does. The standard library's `glob` gives the same but for cycles, in
    which it takes for ever, and for folders that cannot be listed, which it passes over.

    Raises:
        UserError: a folder that it looks into cannot be listed, or a link leads nowhere.
    """
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    base = "/".join(parts[:first]) or ("/" if first else "")
    files, left_out = [], []
    for name in dict.fromkeys(_matches(base, parts[first:])):
        mode = state_of(name).st_mode
        if stat.S_ISREG(mode):
            files.append(name)
        elif not stat.S_ISDIR(mode) or "**" not in parts:
            left_out.append(f"{name} ({'a folder' if stat.S_ISDIR(mode) else 'not a file'})")
    return _each_once(base, files, left_out)


def hidden_below(folder: str, name: str) -> bool:
    """Whether a file of a folder, or a folder between them, is hidden."""
    return re.search(r"(^|/)[._]", name[len(folder.rstrip("/")) + 1 :]) is not None


def state_of(path: str) -> os.stat_result:
    """The state of a file or folder, through links.

    Raises:
        UserError: it is not there, or the system refuses.
    """
    try:
        return os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, which leads nowhere; mend or remove it"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path}: input not found; check the path") from error
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def require_regular(path: str, mode: int) -> None:
    """Refuse what gives its bytes once: a pipe, as of `<(command)` or /dev/stdin, a socket, a device.

    Raises:
        UserError: it is one.
    """
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}.get(stat.S_IFMT(mode), "device")
        raise UserError(
            f"{path}: is a {kind} and no file; files are read again by several processes, and after a kill: write what "
            "it gives to a file"
        )


def identity(state: os.stat_result) -> Identity:
    """What two names of one file have in common."""
    return state.st_dev, state.st_ino


def _matches(folder: str, parts: list[str]) -> Iterator[str]:
    part, *rest = parts
    if part == "**":
        for below, entries in _folders(folder, (".",)):
            visible = (entry.name for entry in entries if not entry.name.startswith("."))
            yield from _matches(below, rest) if rest else (os.path.join(below, name) for name in visible)
    elif not has_magic(part):
        path = os.path.join(folder, part)
        if rest and os.path.isdir(path):
            yield from _matches(path, rest)
        elif not rest and os.path.lexists(path):
            yield path
    elif os.path.isdir(folder or "."):
        for entry in _entries(folder):
            path = os.path.join(folder, entry.name)
            if fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
                if not rest:
                    yield path
                elif _is_folder(entry, path):
                    yield from _matches(path, rest)


def _folders(root: str, hidden: tuple[str, ...]) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """A folder and those below it that are not hidden, each once, with what is in it."""
    seen: set[Identity] = set()
    # What a link leads to comes last, so that a folder is entered under its own name.
    own, linked = deque([root]), deque[str]()
    while own or linked:
        from_link = not own
        folder = linked.popleft() if from_link else own.popleft()
        place = identity(state_of(folder or "."))
        if place in seen:
            continue
        seen.add(place)
        entries = _entries(folder)
        yield folder, entries
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if not entry.name.startswith(hidden) and _is_folder(entry, path):
                (linked if from_link or entry.is_symlink() else own).append(path)


def _is_folder(entry: os.DirEntry[str], path: str) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return stat.S_ISDIR(state_of(path).st_mode)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder or ".") as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); give yourself permission, or name the files one by one"
        ) from error


def _each_once(base: str, names: Iterable[str], left_out: list[str]) -> Listing:
    """Of several names of one file the one without a link, then the shortest; the others are left out."""
    real_base = os.path.realpath(base or ".")
    found: dict[Identity, str] = {}

    def turn(name: str) -> tuple[bool, int, str]:
        own_place = os.path.normpath(os.path.join(real_base, os.path.relpath(name, base or ".")))
        return os.path.realpath(name) != own_place, name.count("/"), name

    for name in sorted(names, key=turn):
        first = found.setdefault(identity(state_of(name)), name)
        if first != name:
            left_out.append(f"{name} (the same file as {first})")
    return Listing(sorted(found.values()), sorted(left_out))
