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


def checksum(path: Path) -> str:
    """XXH3-128 of a file as `xxh3:<hex>`. It finds accidents (flipped bits, lost pages), not malice."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"{DIGEST_PREFIX}{digest.hexdigest()}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
