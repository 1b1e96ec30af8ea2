"""Pack the environment that runs this, its interpreter and the project into one compressed archive."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.outputs import Output, claim, identity_of
from megatron_kaiyuan.progress import counted
from megatron_kaiyuan.staging.about import ABOUT, About, read_about
from megatron_kaiyuan.starter.shipped import shipped

# Of set-up itself, and of an installation that points into the project's folder.
_NOT_PACKED = ("kaiyuan.stamp", "kaiyuan.made", "kaiyuan.lock", "setup.log", "__editable__")
# Of the interpreter: what no run imports.
_NOT_OF_INTERPRETER = ("site-packages", "dist-packages", "test", "idlelib", "turtledemo", "config-")
_PACKAGES = ("megatron_kaiyuan", "data_tools")
_LEVEL = 3

# A file or a link, and its name in the archive.
Member = tuple[Path, str]


def pack(file: Path, force: bool) -> str:
    """Write the archive, and return a line about it.

    Raises:
        UserError: this Python is of no virtual environment, or something else lies there.
    """
    if sys.prefix == sys.base_prefix:
        raise UserError(f"{sys.executable}: is not the Python of a virtual environment; launch/setup_env.sh makes one")
    members = list(_members())
    stats = [(name, (state := path.lstat()).st_size, state.st_mtime_ns) for path, name in members]
    files = sum("__pycache__" not in name for _, name in members)
    about = About(identity_of(sys.prefix, stats), sys.prefix, _packed_interpreter(), files)
    output = Output(file, "a packed environment", "FILE", "file")
    with claim(output, about.identity, _earlier, force=force), atomic_path(output.path) as new:
        _write(new, about, counted(members, f"pack {file.name}", "files"))
    size = sum(size for _, size, _ in stats)
    return f"stage: {len(members):,} files, {size / 1e9:.2f} GB, in {file} ({file.stat().st_size / 1e9:.2f} GB)"


def _members() -> Iterator[Member]:
    yield from _tree(Path(sys.prefix), "venv", _NOT_PACKED)
    site = "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    for name in _PACKAGES:
        folder = Path(str(importlib.import_module(name).__file__)).parent
        if not folder.is_relative_to(sys.prefix):
            yield from _tree(folder, str(site / name))
    for name in ("launch", "docs"):
        if not shipped(name).is_relative_to(sys.prefix):
            yield from _tree(shipped(name), str(site / "megatron_kaiyuan" / "starter" / name))
    if _packed_interpreter():
        yield from _interpreter(Path(sys.base_prefix))


def _tree(folder: Path, name: str, left_out: tuple[str, ...] = ()) -> Iterator[Member]:
    """All files and links below a folder."""
    for place, folders, files in os.walk(folder):
        links = [one for one in folders if os.path.islink(os.path.join(place, one))]
        folders[:] = [one for one in sorted(folders) if one not in links and not one.startswith(left_out)]
        for one in sorted([*files, *links]):
            if not one.startswith(left_out):
                path = Path(place, one)
                yield path, f"{name}/{path.relative_to(folder)}"


def _packed_interpreter() -> str:
    """The name of the interpreter's program, where it is packed too: that of /usr is on every node."""
    return "" if Path(sys.base_prefix) == Path("/usr") else f"python{sys.version_info[0]}.{sys.version_info[1]}"


def _interpreter(base: Path) -> Iterator[Member]:
    """The program, its own libraries and the standard library."""
    yield Path(os.path.realpath(sys.executable)), f"base/bin/{_packed_interpreter()}"
    for path in sorted((base / "lib").glob("*.so*")):
        yield path, f"base/lib/{path.name}"
    library = Path(sysconfig.get_path("stdlib"))
    yield from _tree(library, f"base/lib/{library.name}", _NOT_OF_INTERPRETER)


def _write(file: Path, about: About, members: Iterable[Member]) -> None:
    # Stored content has a checksum, which the unpacking compares.
    compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
    with (
        open(file, "wb") as raw,
        compressor.stream_writer(raw) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        content = json.dumps(about.as_json()).encode()
        head = tarfile.TarInfo(ABOUT)
        head.size = len(content)
        tar.addfile(head, io.BytesIO(content))
        for path, name in members:
            member = tar.gettarinfo(path, name)
            if member.islnk():
                # Two names of one file are two files: a link would need the other one to be there before it.
                member.type, member.linkname, member.size = tarfile.REGTYPE, "", path.lstat().st_size
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            if member.issym() and about.interpreter and name.startswith("venv/bin/python"):
                member.linkname = f"../../base/bin/{about.interpreter}"
            if member.isreg():
                with open(path, "rb") as content_of:
                    tar.addfile(member, content_of)
            else:
                tar.addfile(member)


def _earlier(output: Output) -> str | None:
    if not output.path.exists():
        return None
    try:
        return read_about(output.path).identity
    except UserError:
        raise output.in_the_way(output.path) from None
