"""A reader under fuzzing: damaged files must end well or with one line that names them, never in a trace."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_kaiyuan.errors import UserError

# More address space than any of the small files here needs, and less than a size out of a damaged header.
_MEMORY = 4 << 30
# For one file; and before the first, while the readers are imported on a busy machine.
_SECONDS, _START_SECONDS = 60.0, 600.0
ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(str(ROOT / package) + os.sep for package in ("megatron_kaiyuan", "data_tools"))


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        make: writes whole files into an empty folder and returns the one that is damaged.
        damage: (whole bytes, seed) to damaged ones; checksums inside the file are right again.
        read: the readers; what one returns is compared with what it returns for the whole files, where that is not
            None: an accepted file may have other words in it, and no other numbers.
        seal: called after each damage, for checksums in other files.
        prepare: held by the process that makes the files and reads them.
        lenient: the readers leave out what they cannot use, so that no file need be refused.
    """

    name: str
    make: Callable[[Path], Path]
    damage: Callable[[bytes, int], bytes]
    read: Sequence[Callable[[Path], Any]]
    seal: Callable[[Path], None] | None = None
    prepare: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    lenient: bool = False


@dataclass
class Outcome:
    """What came of the files of a target.

    Attributes:
        accepted, refused: how many files were.
        faults: what went wrong: seed and what happened.
        reached: lines of the packages that the readers run for the whole file, as `data_tools/cli.py:7`.
    """

    accepted: int = 0
    refused: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)

    def kinds(self) -> Counter[str]:
        return Counter(text for _, text in self.faults)


def run(target: Target, folder: Path, seeds: Iterable[int]) -> Outcome:
    """Read a damaged file for each seed, in child processes: one that dies is a fault, and another goes on."""
    outcome, left = Outcome(), list(seeds)
    while left:
        last = None
        for seed, kind, text in _in_child(target, _emptied(folder), left):
            if kind == "reached":
                outcome.reached = text.split()
                continue
            last = seed
            if kind == "fault":
                outcome.faults.append((seed, text))
            else:
                setattr(outcome, kind, getattr(outcome, kind) + 1)
        if last is None:
            raise RuntimeError(f"{target.name}: the whole file cannot be read (FUZZ_LOUD=1 shows what children print)")
        left = left[left.index(last) + 1 :]
    return outcome


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _in_child(target: Target, folder: Path, seeds: list[int]) -> Iterator[tuple[int, str, str]]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _serve(target, folder, seeds, writing)
    os.close(writing)
    current: int | None = None
    begun = False
    with open(reading, "rb", buffering=0) as pipe:
        buffered = b""
        while True:
            ready, _, _ = select.select([pipe], [], [], _SECONDS if begun else _START_SECONDS)
            chunk = pipe.read(1 << 16) if ready else b""
            if not chunk:
                break
            begun = True
            *lines, buffered = (buffered + chunk).split(b"\n")
            for line in lines:
                seed, kind, text = pickle.loads(bytes.fromhex(line.decode()))
                current = seed if kind == "begin" else None
                if kind != "begin":
                    yield seed, kind, text
    if current is not None or not begun:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if current is not None:
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        yield current, "fault", f"the process died or hung ({died})"


def _serve(target: Target, folder: Path, seeds: list[int], writing: int) -> None:
    """Read all files and say for each what came of it."""

    def say(seed: int, kind: str, text: str = "") -> None:
        os.write(writing, pickle.dumps((seed, kind, text)).hex().encode() + b"\n")

    try:
        _quiet()
        with target.prepare():
            path = target.make(folder)
            raw = path.read_bytes()
            with _lines() as reached:
                whole = [read(path) for read in target.read]
            say(-1, "reached", " ".join(sorted(reached)))
            _limit_memory()
            for seed in seeds:
                say(seed, "begin")
                path.write_bytes(target.damage(raw, seed))
                if target.seal is not None:
                    target.seal(path)
                say(seed, *_judged(target, path, whole))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


@contextlib.contextmanager
def _lines() -> Iterator[set[str]]:
    """Note which lines of the packages run."""
    found: set[str] = set()

    def called(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            return None
        name = os.path.relpath(file, ROOT)

        def line(frame: FrameType, event: str, _: Any) -> Any:
            found.add(f"{name}:{frame.f_lineno}")
            return line

        return line

    sys.settrace(called)
    try:
        yield found
    finally:
        sys.settrace(None)


def _quiet() -> None:
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not os.environ.get("FUZZ_LOUD"):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))


def _judged(target: Target, path: Path, whole: Sequence[Any]) -> tuple[str, str]:
    """The worst of what the readers did."""
    found = [_judged_by(read, path, expected) for read, expected in zip(target.read, whole, strict=True)]
    return max(found, key=lambda one: ("accepted", "refused", "fault").index(one[0]))


def _judged_by(read: Callable[[Path], Any], path: Path, whole: Any) -> tuple[str, str]:
    try:
        found = read(path)
    except UserError as error:
        message = str(error)
        if len(message) > 3000:
            return "fault", f"a message of {len(message)} characters"
        if path.name not in message and path.parent.name not in message:
            return "fault", f"does not name the file: {message[:200]}"
        return "refused", ""
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/tests/" not in frame.filename and "/.venv/" not in frame.filename]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return "fault", f"{type(error).__name__} at {place}: {str(error)[:150]}"
    if found is not None and found != whole:
        return "fault", f"accepted, and gives {str(found)[:150]} instead of {str(whole)[:150]}"
    return "accepted", ""
