"""Two of the same command at once into one output, and products that the system does not let go.

Of two with the same input both may succeed; of two with other input exactly one does, and the other ends with one line.
Where something of the earlier product cannot be removed, the command is refused and the product stays as it was.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.bay import USUAL, Bay, wait, without_temporaries
from tests.faults.bench import Bench, Lost
from tests.faults.commands import Command
from tests.faults.scenarios import can_mount, counted

_REFUSED = 2
# Starts that differ by about the time that a small command takes.
_LONGEST_DELAY_SECONDS = 0.3


def two_at_once(bench: Bench, command: Command, rounds: int, systems: tuple[str, ...] = (USUAL,)) -> None:
    """So many pairs of the same input, and as many of other input, for each system."""
    bay = Bay(bench, command)
    for system in systems:
        for other in ("A", "B"):
            kind = "the same input" if other == "A" else "other input"
            for _ in range(rounds):
                with counted(bench, f"two at once, {kind}{system}"):
                    _two(bay, other, system)


def _two(bay: Bay, other: str, system: str) -> None:
    bay.clear()
    bay.log.unlink(missing_ok=True)
    delay = functools.partial(time.sleep, bay.bench.drawn.random() * _LONGEST_DELAY_SECONDS)
    processes = [bay.start("A", system=system), bay.start(other, system=system, arm=delay)]
    codes = [wait(process) for process in processes]
    where = f"two of {bay.command.name}{system}, A and {other}"
    said = bay.said()
    if "Traceback" in said:
        raise Lost(f"{where}: {said[-1500:]}")
    if other == "A":
        # On a slow machine one may have waited for the other for as long as it waits.
        if codes != [0, 0]:
            raise Lost(f"{where}: ended with {codes}: {said[-600:]}")
        bay.expect("A", where)
        return
    if sorted(codes) != [0, _REFUSED] or said.count("error: ") != 1:
        raise Lost(f"{where}: ended with {codes}: {said[-600:]}")
    bay.expect("AB"[codes.index(0)], where)


def cannot_delete(bench: Bench, command: Command) -> None:
    """Each way in which a file system keeps what it has; those that this machine or user cannot have are left out."""
    bay = Bay(bench, command)
    for name, keep in _ways().items():
        for late in (False, True):
            with counted(bench, f"cannot delete: {name}"):
                _refuse(bay, name, keep, late)


def _refuse(bay: Bay, name: str, keep: Callable[[Path], None], late: bool) -> None:
    bay.clear("A")
    output = bay.out / bay.command.output
    # The last file of a folder, so that others would be removed before it is met.
    kept = max(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else output
    before = without_temporaries(bay.tree())
    where = f"{bay.command.name}, over {kept.name} that cannot be deleted ({name}{', late' if late else ''})"
    protect = functools.partial(keep, kept)
    try:
        if not late:
            protect()
        code = bay.run("B", "--force", arm=functools.partial(_after_the_check, protect) if late else lambda: None)
        said = bay.said()
    finally:
        _release(bay.out)
    if code != _REFUSED or "Traceback" in said or said.count("error: ") != 1:
        raise Lost(f"{where}: ended with {code}: {said[-600:]}")
    found = without_temporaries(bay.tree())
    if found != before:
        raise Lost(f"{where}: the earlier product is not as it was: {sorted(found.keys() ^ before.keys())}: {said}")
    if code := bay.run("B", "--force"):
        raise Lost(f"{where}: afterwards it ended with {code}: {bay.said()[-600:]}")
    bay.expect("B", f"{where}, then without it")


def _after_the_check(keep: Callable[[], object]) -> None:
    """Begin when the command has seen that it may write: what it replaces is protected while it works."""
    from megatron_kaiyuan import outputs

    checked = outputs._refuse_protected

    def check(output: outputs.Output) -> None:
        checked(output)
        keep()

    outputs._refuse_protected = check


def _ways() -> dict[str, Callable[[Path], None]]:
    ways: dict[str, Callable[[Path], None]] = {}
    if can_mount():
        ways |= {"a mount in it": _mount, "a read-only mount in it": functools.partial(_mount, read_only=True)}
        if shutil.which("chattr"):
            ways["an immutable file"] = _make_immutable
    return ways


def _make_immutable(path: Path) -> None:
    subprocess.run(["chattr", "+i", path], check=True)


def _mount(path: Path, read_only: bool = False) -> None:
    subprocess.run(["mount", "--bind", path, path], check=True)
    if read_only:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)


def _release(folder: Path) -> None:
    """Whatever keeps something in a folder, and wherever it has been renamed to."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for place in mounted:
        if place.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", place], check=True)
    subprocess.run(["chattr", "-R", "-i", folder], check=False, stderr=subprocess.DEVNULL)
