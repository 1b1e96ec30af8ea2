"""Files that are either whole or absent: temporary name, fsync, rename. Checksums beside them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.progress import has_read

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 22
DIGEST_PREFIX = "xxh3:"
_SEAL = "seal"
_TEMPORARY = ".tmp"
# Also of a temporary file that was itself written by way of one.
_LEFTOVER = re.compile(r"[0-9a-f]{8}\.tmp(\.[0-9a-f]{8}\.tmp)*")
_ASIDE = re.compile(r"[0-9a-f]{8}\.replaced\.tmp")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def fsync_path(path: Path) -> None:
    """Flush a file's or a folder's entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(target: Path, *, replace_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target`, of a name of its own; on success it is flushed and renamed to `target`.

    Works for a file or for a folder (the caller makes it). On an exception nothing is left over and an existing
    `target` stays as it was. A process that is killed leaves either the old or the new `target`, and at most a
    temporary name, which `remove_leftovers` removes.

    Args:
        replace_folder: a folder that holds something is replaced whole: the caller knows all that is in it.

    Raises:
        UserError: `target` is a folder that holds something.
    """
    if target.is_dir() and not replace_folder and any(target.iterdir()):
        raise UserError(f"{target}: holds files already; name another folder, or move them away")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        yield temporary
        if temporary.is_dir():
            for path in sorted(temporary.rglob("*")):
                _give_usual_mode(path)
                fsync_path(path)
        if not temporary.is_symlink():
            _give_usual_mode(temporary)
            fsync_path(temporary)
        put_in_place(temporary, target)
    except BaseException:
        remove(temporary)
        raise


def _give_usual_mode(path: Path) -> None:
    """Let those read a file whom the user's umask lets: some libraries write files for their owner alone."""
    state = os.lstat(path)
    # A file with another name elsewhere is not ours alone.
    if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
        usual = stat.S_IMODE(state.st_mode) | (0o666 & ~_umask())
        if usual != stat.S_IMODE(state.st_mode):
            os.chmod(path, usual)


def _umask() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(r"^Umask:\s*(\d+)", status, re.MULTILINE)[0], 8)
    except (OSError, IndexError):  # not Linux: the only other way to know it is to set it
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def temporary_beside(target: Path) -> Path:
    """A name beside `target` that no one else uses, and that `remove_leftovers` knows."""
    return target.with_name(f"{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")


def put_in_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`; a folder that is there is exchanged with it in one step, then removed.

    On a file system that cannot exchange, the old folder is renamed aside in between: `settle` brings it back after
    a kill.

    Raises:
        UserError: the old folder cannot be removed; it is as it was, and `new` too.
    """
    if target.is_dir() and not target.is_symlink() and new.is_dir():
        exchanged = _exchange(new, target)
        old = new if exchanged else _new_aside(target)
        if not exchanged:
            os.rename(target, old)
            os.rename(new, target)
        fsync_path(target.parent)
        try:
            _try_to_remove(old)
        except OSError as error:
            if exchanged:
                _exchange(new, target)
            else:
                os.rename(target, new)
                os.rename(old, target)
            raise _cannot_be_removed(target / Path(error.filename).relative_to(old), error) from error
        remove(old)
    else:
        os.replace(new, target)
    fsync_path(target.parent)


def break_hard_links(path: Path) -> None:
    """Give `path` a file of its own, before it is appended to or written in place; its other names keep theirs."""
    if path.is_file() and path.stat().st_nlink > 1:
        with atomic_path(path) as temporary:
            shutil.copy2(path, temporary)


def _try_to_remove(folder: Path) -> None:
    """Rename all that a folder holds there and back, which the system refuses for what it would not remove.

    Raises:
        OSError: something in it is immutable, mounted, or in a folder without permission; nothing is changed.
    """
    for path in sorted(folder.rglob("*")):
        probe = path.with_name(f"{path.name}{_TEMPORARY}")
        os.rename(path, probe)
        os.rename(probe, path)


def _cannot_be_removed(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: the earlier one cannot be removed ({os.strerror(error.errno or 0)}), so nothing was replaced; make "
        "it removable, or name another place"
    )


def publish(pairs: Sequence[tuple[Path, Path]], journal: Path) -> None:
    """Give several files of one folder their names as if at once, the last one last.

    The journal lists them before the first is renamed: whoever calls `settle` after a kill finishes the work. No old
    file stands beside a new one in between. Old files are renamed aside first, and removed last.

    Args:
        pairs: (temporary, final) paths, all in the journal's folder; the last one is what readers open first.

    Raises:
        UserError: an old file cannot be removed; all are as they were, and the temporary ones are gone.
    """
    for temporary, _ in pairs:
        if not temporary.is_symlink():
            fsync_path(temporary)
    names = [[temporary.name, final.name, temporary_beside(final).name] for temporary, final in pairs]
    write_sealed_json(journal, {"publish": names})
    _finish(journal)


def settle(journal: Path, target: Path | None = None) -> None:
    """Finish what a killed process left between its first and its last rename.

    Args:
        journal: of `publish`; it need not exist.
        target: a folder that `put_in_place` may have left aside.
    """
    if journal.is_file():
        _finish(journal)
    if target is None:
        return
    for aside in _asides(target):
        if os.path.lexists(target):
            remove(aside)
        else:
            os.rename(aside, target)


def remove_leftovers(target: Path) -> None:
    """Remove temporary files and folders of `target` that killed processes left. The caller holds its lock.

    What cannot be removed is named in a warning, and stays.
    """
    if target.parent.is_dir():
        for path in target.parent.iterdir():
            if path.name.startswith(f"{target.name}.") and _LEFTOVER.fullmatch(path.name[len(target.name) + 1 :]):
                try:
                    remove(path)
                except OSError as error:
                    log.warning(f"{path}: left by a killed process, cannot be removed ({error})")


def _finish(journal: Path) -> None:
    folder = journal.parent
    listed = read_sealed_json(journal, "journal of names").get("publish")
    if listed is None or not _are_names(listed):
        raise UserError(
            f"{journal}: is not a journal of names; move it away, and look which of the files beside it are new"
        )
    triples = [(folder / new, folder / final, folder / old) for new, final, old in listed]
    left = [triple for triple in triples if os.path.lexists(triple[0])]  # the others got their names before a kill
    for _, final, old in reversed(left):
        try:
            if os.path.lexists(final):
                os.rename(final, old)
        except OSError as error:
            _take_back(journal, left)
            raise _cannot_be_removed(final, error) from error
    fsync_path(folder)
    for new, final, _ in left:
        os.rename(new, final)
    fsync_path(folder)
    journal.unlink()
    fsync_path(folder)
    for _, _, old in triples:
        remove(old)


def _are_names(listed: Any) -> bool:
    """Whether a journal holds what `publish` writes: names of files in its folder, three by three."""
    if not isinstance(listed, list) or not all(isinstance(names, list) and len(names) == 3 for names in listed):
        return False
    names = [name for triple in listed for name in triple]
    return len({str(name) for name in names}) == len(names) and all(map(_is_name, names))


def _is_name(name: Any) -> bool:
    whole = isinstance(name, str) and name not in ("", "..") and "\0" not in name
    return whole and Path(name).name == name and len(os.fsencode(name)) <= 255


def _take_back(journal: Path, triples: Sequence[tuple[Path, Path, Path]]) -> None:
    """Give the old files their names again, and forget the new ones."""
    for _, final, old in triples:
        if os.path.lexists(old):
            os.rename(old, final)
    fsync_path(journal.parent)
    journal.unlink()
    for new, _, _ in triples:
        remove(new)


def _new_aside(target: Path) -> Path:
    return target.with_name(f"{target.name}.{secrets.token_hex(4)}.replaced{_TEMPORARY}")


def _asides(target: Path) -> list[Path]:
    """Where earlier ones of a folder were put, when a process was killed before it removed them."""
    if not target.parent.is_dir():
        return []
    start = f"{target.name}."
    return [
        path
        for path in target.parent.iterdir()
        if path.name.startswith(start) and _ASIDE.fullmatch(path.name[len(start) :])
    ]


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step, as Linux can on most file systems; False where it cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # another system, or an old C library
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def require_utf8(path: str | Path) -> None:
    """Refuse a path that no record can hold.

    Raises:
        UserError: its bytes are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        name = _shown(str(path))
        raise UserError(f"{name}: its name is not UTF-8, so that no manifest can record it; rename it") from None


def _shown(path: str) -> str:
    # Bytes that are not UTF-8 are halves of surrogate pairs in Python's paths.
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_text(target: Path, text: str) -> None:
    """Write a whole text file atomically."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        part = text[max(error.start - 40, 0) : error.end].rpartition('"')[2]
        raise UserError(f"{target}: cannot record {_shown(part)}..., which is not UTF-8; rename it") from error
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: Path, content: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    write_text(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        what: what the file is, for the error ("phase manifest").

    Raises:
        UserError: it is missing, is not JSON, or holds text that no file can (half of a surrogate pair).
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except FileNotFoundError as error:
        raise UserError(f"{path}: {what} not found; check the path, or make it first") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, not a {what}; name the file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} is not valid JSON ({excerpt(error)}); make it again") from error


def write_sealed_json(target: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically; its last entry, `seal`, is the checksum of the file with that entry empty."""
    fields = {name: value for name, value in content.items() if name != _SEAL}
    blank = json.dumps({**fields, _SEAL: ""}, indent=1, ensure_ascii=False) + "\n"
    head, _, tail = blank.rpartition('""')
    write_text(target, f'{head}"{_digest(blank.encode())}"{tail}')


def read_sealed_json(path: Path, what: str) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote, whole to the bit.

    Args:
        what: what the file is, for the error ("phase manifest").

    Raises:
        UserError: it is missing, is not JSON, or is not the file that was written.
    """
    content = read_json(path, what)
    seal = content.get(_SEAL) if isinstance(content, dict) else None
    if not isinstance(seal, str) or not seal:
        raise UserError(f"{path}: is no {what}, or one of an older version: it has no {_SEAL!r}; make it again")
    head, _, tail = path.read_bytes().rpartition(seal.encode())
    if (found := _digest(head + tail)) != seal:
        raise UserError(f"{path}: damaged, its checksum is {found} instead of {seal}; restore it, or make it again")
    return content


def checksum(path: Path) -> str:
    """XXH3-128 of a file as `xxh3:<hex>`. It finds accidents (flipped bits, lost pages), not malice."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            has_read(len(chunk))
    return f"{DIGEST_PREFIX}{digest.hexdigest()}"


def _digest(content: bytes) -> str:
    return f"{DIGEST_PREFIX}{xxhash.xxh3_128_hexdigest(content)}"


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; it need not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
