from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import read_manifest, shares, verify
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, write_sealed_json
from tests.helpers.training.small_checkpoint import FILES, make_step


@given(st.binary(min_size=1, max_size=200), st.data())
def test_every_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    folder = make_step(tmp_path_factory.mktemp("run"), 1, content)
    verify(folder)
    position, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    (folder / "__0_0.distcp").write_bytes(damaged)
    with pytest.raises(UserError, match=r"__0_0\.distcp: damaged, checksum xxh3:\w+ instead of xxh3:\w+"):
        verify(folder)


@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_still_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any byte of it changed, or the end cut off: never another exception than a user's mistake."""
    folder = make_step(tmp_path_factory.mktemp("run"), 1)
    whole = (folder / layout.MANIFEST).read_bytes()
    files = read_manifest(folder)["files"]
    position = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(
        st.sampled_from([b"", b"\0", b'"', b"}", b"9", b"/", b"\xff", whole[position + 1 : position + 2]])
    )
    damaged = whole[:position] if data.draw(st.booleans()) else whole[:position] + other + whole[position + 1 :]
    (folder / layout.MANIFEST).write_bytes(damaged)
    try:
        verify(folder)
    except UserError as error:
        assert str(folder) in str(error)
    else:
        assert read_manifest(folder)["files"] == files


@pytest.mark.parametrize("name", FILES)
def test_each_file_removed_cut_or_unreadable(name: str, tmp_path: Path) -> None:
    folder = make_step(tmp_path, 1)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{name}: damaged, {len(content) - 1} bytes instead of {len(content)}"):
        verify(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing from the checkpoint, {len(content)} bytes expected"):
        verify(folder)
    (folder / name).mkdir()
    with pytest.raises(UserError, match=name):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a checkpoint's manifest"),
        ({"version": 3}, "version 3"),
        ({"files": []}, "does not list"),
        ({"files": {}}, r"does not list \.metadata, common\.pt, metadata\.json"),
        ({"files": {"a": {"bytes": "1", "checksum": ""}}}, "does not list"),
    ],
)
def test_manifests_that_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    folder = make_step(tmp_path, 1)
    path = folder / layout.MANIFEST
    write_sealed_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(UserError, match=message):
        verify(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", ".", "link/secret", "sub/../../secret", "a\0b"])
def test_a_manifest_cannot_name_what_lies_outside(name: str, tmp_path: Path) -> None:
    folder = make_step(tmp_path, 1)
    (folder.parent / "secret").write_bytes(b"x")
    (folder / "link").symlink_to(folder.parent)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "checksum": checksum(folder.parent / "secret")}
    write_sealed_json(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match="not inside the checkpoint"):
        verify(folder)


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 9))
def test_shares_are_all_files_once_and_even(sizes: list[int], ranks: int) -> None:
    files = {f"file {number}": {"bytes": size} for number, size in enumerate(sizes)}
    parts = shares(files, ranks)
    assert len(parts) == ranks and sorted(name for part in parts for name in part) == sorted(files)
    loads = [sum(files[name]["bytes"] for name in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes, default=0)
