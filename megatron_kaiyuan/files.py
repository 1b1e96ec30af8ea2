"""Files that are either whole or absent: temporary name, fsync, rename. Checksums beside them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from megatron_kaiyuan.errors import UserError

_CHUNK_BYTES = 1 << 22
DIGEST_PREFIX = "xxh3:"
_SEAL = "seal"


def fsync_path(path: Path) -> None:
    """Flush a file's or a folder's entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed and renamed to `target`.

    Works for a file or for a folder (the caller makes it). On an exception nothing is left behind
    and an existing `target` stays as it was. An existing folder is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            for path in sorted(temporary.rglob("*")):
                fsync_path(path)
            if target.is_dir():
                shutil.rmtree(target)
        fsync_path(temporary)
        os.replace(temporary, target)
        fsync_path(target.parent)
    except BaseException:
        _remove(temporary)
        raise


def write_text(target: Path, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    write_text(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        what: what the file is, for the error ("phase manifest").

    Raises:
        UserError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: {what} not found; check the path, or make it first") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} is not valid JSON ({error}); make it again") from error


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
    if not isinstance(seal, str):
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
    return f"{DIGEST_PREFIX}{digest.hexdigest()}"


def _digest(content: bytes) -> str:
    return f"{DIGEST_PREFIX}{xxhash.xxh3_128_hexdigest(content)}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
