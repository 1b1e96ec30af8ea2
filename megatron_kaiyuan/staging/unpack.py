"""Unpack an archive to this node's disk, once, and hand out the folder to every process that asks."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import remove_leftovers, temporary_beside
from megatron_kaiyuan.locks import lock
from megatron_kaiyuan.progress import counted
from megatron_kaiyuan.staging.about import ABOUT, About, opened, parse_about

VARIABLE = "KAIYUAN_STAGE_DIR"


def local_folder() -> Path:
    """The folder for environments of this user on this node; it is made where it is missing.

    Raises:
        UserError: someone else can write to it: what lies there is run.
    """
    parent = Path(os.environ.get(VARIABLE) or os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
    folder = parent.absolute() / f"kaiyuan-env-{os.geteuid()}"
    parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        state = folder.lstat()
        if folder.is_symlink() or not folder.is_dir() or state.st_uid != os.geteuid() or state.st_mode & 0o022:
            raise UserError(
                f"{folder}: is not a folder that this user alone can write to; remove it, or set {VARIABLE} to "
                "one on this node's disk"
            ) from None
    return folder


def use(file: Path) -> Path:
    """The environment of an archive on this node, unpacked if it is not there yet; others that ask wait.

    Raises:
        UserError: the archive is damaged, or there is no room.
    """
    folder = local_folder()
    state = file.stat()
    target = folder / f"{state.st_size:x}-{state.st_mtime_ns:x}"
    with lock(folder / ".lock", seconds=None):
        if not _is_whole(target):
            # Of an unpacking that was killed; and what cleaners of /tmp have left of an environment.
            remove_leftovers(target)
            _move_away(target)
            _unpack(file, target)
    return target / "venv"


def _is_whole(target: Path) -> bool:
    try:
        about = parse_about((target / ABOUT).read_bytes(), target)
    except (OSError, UserError):
        return False
    return _count(target) == about.files


def _count(target: Path) -> int:
    """Files and links, but for the cached ones that Python makes by itself."""
    found = 0
    for place, folders, files in os.walk(target):
        if not place.endswith("__pycache__"):
            found += len(files) + sum(os.path.islink(os.path.join(place, one)) for one in folders)
    return found - 1  # ABOUT


def _move_away(target: Path) -> None:
    if os.path.lexists(target):
        away = temporary_beside(target)
        target.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def _unpack(file: Path, target: Path) -> None:
    new = temporary_beside(target)
    try:
        with opened(file) as (about, tar):
            _extract(tar, new, file.name)
        _relocate(new, target, about)
        (new / ABOUT).write_text(json.dumps(about.as_json()), encoding="utf-8")
        if _count(new) != about.files:
            raise UserError(f"{file}: is not whole; pack it again")
        new.rename(target)
    except OSError as error:
        raise UserError(
            f"{target.parent}: {file} cannot be unpacked there ({error.strerror or error}); set {VARIABLE} to a folder "
            "with more room"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _extract(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    folder.mkdir()
    # Newer Pythons refuse links to outside, as bin/python has to be where the interpreter is the node's own.
    tar.extraction_filter = staticmethod(lambda member, path: member)  # type: ignore[assignment]
    # Iterating the archive itself would begin at its first member.
    for member in counted(iter(tar.next, None), f"unpack {name}", "files"):
        if os.path.isabs(member.name) or ".." in Path(member.name).parts:
            raise tarfile.TarError(f"member {member.name}")
        tar.extract(member, folder, set_attrs=not member.issym())
    # To the very end, where the checksum is.
    while tar.fileobj and tar.fileobj.read(1 << 20):
        pass


def _relocate(new: Path, target: Path, about: About) -> None:
    """Let the environment's programs and its interpreter know where they will be."""
    if about.interpreter:
        settings = new / "venv" / "pyvenv.cfg"
        lines = settings.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.partition("=")[0].strip() != "home"]
        settings.write_text("\n".join([f"home = {target}/base/bin", *kept, ""]), encoding="utf-8")
    old, now = about.prefix.encode(), str(target / "venv").encode()
    for program in (new / "venv" / "bin").iterdir():
        if program.is_file() and not program.is_symlink():
            content = program.read_bytes()
            if old in content and b"\0" not in content:
                program.write_bytes(content.replace(old, now))


def clean() -> Iterator[str]:
    """Remove the environments that no process of this user on this node uses; a line each, also of those kept."""
    folder = local_folder()
    with lock(folder / ".lock"):
        for target in sorted(path for path in folder.iterdir() if path.is_dir()):
            if users := _users(target):
                yield f"stage: kept {target}, in use by process {users[0]}"
            else:
                shutil.rmtree(target)
                yield f"stage: removed {target}"


def _users(target: Path) -> list[int]:
    """Processes that have a library of it mapped, or its interpreter."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"{target}/" in maps.read_text(encoding="utf-8", errors="replace"):
                found.append(int(maps.parent.name))
        except OSError:
            continue
    return found
