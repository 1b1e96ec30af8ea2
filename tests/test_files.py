from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import xxhash

from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.files import (
    atomic_path,
    checksum,
    read_json,
    read_sealed_json,
    write_json,
    write_sealed_json,
)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file.json"
    write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert read_json(target, "file") == {"a": 1}
    assert [path.name for path in target.parent.iterdir()] == ["file.json"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_path(target, replace_folder=True) as temporary:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / name).write_text(name)
    assert [path.name for path in target.rglob("*")] == ["deep", "second"]
    with pytest.raises(UserError, match="holds files already"), atomic_path(target):
        pass
    with pytest.raises(RuntimeError), atomic_path(target, replace_folder=True) as temporary:
        temporary.mkdir()
        raise RuntimeError("killed")
    assert (target / "deep" / "second").exists() and not list(tmp_path.glob("*.tmp"))


def test_reading_what_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="phase manifest not found"):
        read_json(tmp_path / "absent", "phase manifest")
    (tmp_path / "torn").write_bytes(b'{"a": \xff')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "torn", "phase manifest")
    with pytest.raises(UserError, match="is a folder, not a phase manifest"):
        read_json(tmp_path, "phase manifest")


def test_any_flipped_bit_of_a_sealed_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    content = {"name": 'Ä "" 1e-05', "empty": "", "seal": "ours", "rate": 1e-05, "files": {"a": {"bytes": 4096}}}
    write_sealed_json(path, content)
    assert read_sealed_json(path, "manifest") == {**content, "seal": read_json(path, "manifest")["seal"]}
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=re.escape(str(path))):
            read_sealed_json(path, "manifest")


def test_a_file_without_a_seal_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "old.json", {"version": 1})
    with pytest.raises(UserError, match="is no phase manifest, or one of an older version: it has no 'seal'"):
        read_sealed_json(tmp_path / "old.json", "phase manifest")


def test_checksum_is_xxh3(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40000
    (tmp_path / "file").write_bytes(content)
    assert checksum(tmp_path / "file") == "xxh3:" + xxhash.xxh3_128_hexdigest(content)


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(UserError, match=r"the kitchen needs the package 'no_such_package'.*pip install .*'lm-eval>="):
        require("no_such_package", extra="eval", purpose="the kitchen")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_of_a_library_has_the_mode_of_its_siblings(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "new") as new:
            new.mkdir()
            (new / "usual").touch()
            os.close(os.open(new / "private", os.O_CREAT | os.O_WRONLY, 0o600))
        with atomic_path(tmp_path / "file") as new:
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (*(tmp_path / "new").iterdir(), tmp_path / "file")}
    assert modes == {0o666 & ~umask}


def test_a_linked_file_keeps_its_mode(tmp_path: Path) -> None:
    """It is another folder's too."""
    os.close(os.open(tmp_path / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    with atomic_path(tmp_path / "new") as new:
        new.mkdir()
        os.link(tmp_path / "private", new / "linked")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
