"""One command that writes, tried: run in forks of this process, killed at a step, and its product compared."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_tools import cli as data_cli
from megatron_kaiyuan import cli, files
from tests.faults.bench import Bench, Lost
from tests.faults.commands import Command
from tests.helpers.processes.ranks import fork

Tree = dict[str, bytes]
# What stands beside the output and looks most like something that a command may remove.
_USERS = {"mine.txt": "mine", "made.tmp": "mine", "made.0123abcd.tmp.txt": "mine", "model.replaced.old": "mine"}
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp|(^|/)\.[^/]*\.lock$|\.publishing\.json$|\.(shards|work)/")
# File systems: what Linux's own can do, and what some of a network or of a user's program cannot.
USUAL, NO_LOCKS, NO_EXCHANGE = "", " without locks", " without RENAME_EXCHANGE"


class Bay:
    """One command, its output folder, and the products that it makes undisturbed."""

    def __init__(self, bench: Bench, command: Command):
        self.bench, self.command = bench, command
        self.out, self.log = bench.folder / "out", bench.folder / "command.log"
        self._kept: dict[str, Path] = {}
        self._modules: Path | None = bench.folder / "modules"
        self.products = {name: self._alone(name) for name in "AB"}
        self._modules = None
        if self.products["A"] == self.products["B"]:
            raise RuntimeError(f"{command.name}: both inputs give the same product")

    def words(self, product: str, *options: str) -> list[str]:
        program = "kaiyuan-data" if self.command.name.startswith("kaiyuan-data") else "kaiyuan"
        return [program, *(self.command.first if product == "A" else self.command.second), *options]

    def start(self, product: str, *options: str, system: str = USUAL, arm: Callable[[], object] = lambda: None) -> int:
        """Start the command in a fork; its process id.

        Args:
            system: the file system's abilities.
            arm: done in the fork before the command.
        """
        words = self.words(product, *options)
        return fork(functools.partial(_run, words, system, arm, self._modules), (self.log, self.log))

    def run(self, product: str, *options: str, system: str = USUAL, arm: Callable[[], object] = lambda: None) -> int:
        """Run the command to its end; its exit code, negative for a signal."""
        self.log.unlink(missing_ok=True)
        return wait(self.start(product, *options, system=system, arm=arm))

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def clear(self, product: str = "") -> None:
        """`out` with an earlier product or none, and with a user's own files."""
        shutil.rmtree(self.out, ignore_errors=True)
        if product:
            shutil.copytree(self._kept[product], self.out, symlinks=True)
        for folder in {self.out, (self.out / self.command.output).parent}:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in _USERS.items():
                (folder / name).write_text(content)

    def tree(self) -> Tree:
        """What lies in `out`, the user's own files apart, which must be as they were.

        Raises:
            Lost: they are not.
        """
        found = _tree(self.out)
        for folder in {self.out, (self.out / self.command.output).parent}:
            for name, content in _USERS.items():
                if found.pop(str((folder / name).relative_to(self.out)), b"gone") != content.encode():
                    raise Lost(f"{folder / name}: a file of the user's was touched")
        return found

    def expect(self, product: str, when: str, temporary: bool = False) -> None:
        """The product, whole, and nothing besides.

        Args:
            temporary: what a killed process left may still be there: without locks another machine may be at it.

        Raises:
            Lost: it is not so.
        """
        expected, found = self.products[product], self.tree()
        if temporary:
            found = without_temporaries(found)
        if found != expected:
            different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise Lost(f"{when}: not {product}, other files are {different}: {self.said()[-600:]}")

    def expect_whole(self, when: str, *which: str) -> None:
        """Each product is one of these, whole. A command that is refused leaves what a killed one left.

        Raises:
            Lost: it is not so.
        """
        found = without_temporaries(self.tree())
        for pattern in self.command.products:
            part = _part(found, pattern)
            if not any(part == _part(self.products[name], pattern) for name in which):
                raise Lost(f"{when}: {sorted(part)} is none of {which}: {self.said()[-600:]}")

    def _alone(self, product: str) -> Tree:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        if self.run(product):
            raise RuntimeError(f"{self.command.name} failed undisturbed: {self.said()[-2000:]}")
        # What it has imported on its way takes most of its time: once is enough, here.
        assert self._modules is not None
        for module in self._modules.read_text().splitlines():
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        self._kept[product] = self.bench.folder / f"kept_{product}"
        shutil.rmtree(self._kept[product], ignore_errors=True)
        shutil.copytree(self.out, self._kept[product], symlinks=True)
        return _tree(self.out)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def without_temporaries(tree: Mapping[str, bytes]) -> Tree:
    """Without what a killed or refused command may leave for the next one: shards that are finished, for one."""
    return {name: content for name, content in tree.items() if not _TEMPORARY.search(name)}


def _part(tree: Mapping[str, bytes], pattern: str) -> Tree:
    return {name: content for name, content in tree.items() if name.startswith(pattern)}


def _tree(folder: Path) -> Tree:
    """Content by name; of a link where it leads to. Folders count, since an empty one may be left behind."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path).encode()
        elif path.is_file():
            found[name] = _content(path)
        else:
            found[f"{name}/"] = b""
    return found


def _content(path: Path) -> bytes:
    """All but what is another in each run: seconds of an evaluation, the pickled names within a checkpoint."""
    content = path.read_bytes()
    if path.name == ".metadata" and (path.parent / "manifest.json").exists():  # a killed one left it unsealed
        sealed = json.loads((path.parent / "manifest.json").read_bytes())["files"][path.name]["checksum"]
        return b"whole" if files.checksum(path) == sealed else b"of another checkpoint"
    if path.name == "manifest.json" and b'".metadata"' in content:
        manifest = files.read_sealed_json(path, "manifest")
        return json.dumps({**manifest, "seal": "", "files": {**manifest["files"], ".metadata": ""}}).encode()
    return re.sub(rb'"seconds": [0-9.]+', b"", content)


def _run(words: list[str], system: str, arm: Callable[[], object], modules: Path | None) -> None:
    """As the installed script does."""
    sys.argv = words
    if system == NO_LOCKS:
        fcntl.flock = _no_locks
    elif system == NO_EXCHANGE:
        files._exchange = lambda first, second: False
    arm()
    try:
        (data_cli if words[0] == "kaiyuan-data" else cli).main()
    finally:
        if modules is not None:
            modules.write_text("\n".join(sys.modules))


_flock = fcntl.flock


def _no_locks(file: Any, operation: int) -> None:
    """As where the folder `out` lies on a file system without locks; the system's own folders have them."""
    descriptor = file if isinstance(file, int) else file.fileno()
    if "out" in Path(os.readlink(f"/proc/self/fd/{descriptor}")).parts:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    _flock(file, operation)


class Steps:
    """Counts the calls by which this process changes names below a folder; before one of them it is killed.

    Args:
        limit: SIGKILL before the call of this number; None only counts, into the file `counted`.
    """

    NAMES = ("rename", "replace", "unlink", "rmdir", "fsync", "mkdir", "symlink")

    def __init__(self, folder: Path, counted: Path, limit: int | None):
        self.folder, self.counted, self.limit, self.calls = str(folder), counted, limit, 0
        self.process = 0

    def __call__(self) -> None:
        self.process = os.getpid()
        for name in self.NAMES:
            setattr(os, name, self._counting(getattr(os, name)))
        files._exchange = self._counting(files._exchange)

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            # A descriptor is one of a file that is flushed, or of a folder that is being removed.
            ours = any(
                isinstance(word, int) or self.folder in os.fspath(word) for word in arguments if word is not None
            )
            if (ours or "dir_fd" in options) and os.getpid() == self.process:
                if self.calls == self.limit:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.calls += 1
                if self.limit is None:
                    self.counted.write_text(str(self.calls))
            return function(*arguments, **options)

        return call
