"""The first bytes of a file decide how it is packed, whatever its name; no byte order mark becomes text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
import zstandard

from data_tools.reading.inputs import find_inputs
from data_tools.reading.tasks import Settings, cut_tasks
from data_tools.reading.text import line_rows
from data_tools.reading.texts import texts
from megatron_kaiyuan.errors import UserError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bz2": bz2.compress,
    "lz4": lambda content: pa.compress(content, "lz4", asbytes=True),
    "xz": lzma.compress,
}
SUFFIXES = ["", ".gz", ".gzip", ".zst", ".bz2", ".lz4", ".xz"]
LINES = b'{"text": "one"}\n{"text": "two"}\n'
MARK = codecs.BOM_UTF8


def read(path: Path, documents: str = "line", task_bytes: int = 0) -> list[str]:
    """The texts that preprocess would encode."""
    settings = Settings(Path(), text_documents=documents)
    tasks = cut_tasks(find_inputs([path]), settings, {}, task_bytes)
    rows = [rows for task in tasks for rows in line_rows(task, settings)]
    assert not any(part.bad for part in rows)
    return [text for part in rows for text in part.texts["text"]]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packing", PACKERS)
def test_a_name_does_not_decide(tmp_path: Path, packing: str, suffix: str) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(PACKERS[packing](LINES))
    assert find_inputs([path])[0].packing == packing
    assert read(path) == [text for text, _ in texts([path], "text")] == ["one", "two"]
    path = tmp_path / f"in.txt{suffix}"
    path.write_bytes(PACKERS[packing](b"BZh one\nPAR1\n"))
    assert read(path) == ["BZh one", "PAR1"]


@pytest.mark.parametrize("packing", PACKERS)
def test_several_frames_and_what_is_empty(tmp_path: Path, packing: str) -> None:
    pack, path = PACKERS[packing], tmp_path / "in.jsonl"
    path.write_bytes(pack(b"") + pack(LINES) + pack(LINES))
    assert read(path) == ["one", "two"] * 2
    path.write_bytes(pack(b""))
    assert read(path) == []


def test_padding_and_frames_to_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(gzip.compress(LINES) + bytes(1000))
    assert read(path) == ["one", "two"]
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(LINES))
    assert read(path) == ["one", "two"]
    for damaged in (gzip.compress(LINES) + b"more", gzip.compress(LINES)[:-9], gzip.compress(LINES)[:12] + b"x" * 40):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"in\.jsonl: cannot be read .*; check or copy the file again"):
            read(path)


def test_long_windows(tmp_path: Path) -> None:
    stored = io.BytesIO()
    parameters = zstandard.ZstdCompressionParameters(window_log=31)
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(stored, closefd=False) as packed:
        packed.write(LINES)
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(stored.getvalue())
    assert read(path) == ["one", "two"]


def test_every_cut_of_a_zstd_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.zst"
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    frame = zstandard.compress(LINES)
    whole = frame + skipped + frame + skipped
    ends = [0, len(frame), len(frame + skipped), len(frame + skipped + frame), len(whole)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        if size in ends:
            assert read(path) == ["one", "two"] * ((size >= ends[1]) + (size >= ends[3]))
        else:
            with pytest.raises(UserError, match=r"cannot be read \(truncated in a zstd frame\); check or copy"):
                read(path)


@pytest.mark.parametrize("packing", ["gzip", "zstd", "bz2", "lz4", "xz"])
def test_a_later_frame_that_is_damaged_is_not_left_out(tmp_path: Path, packing: str) -> None:
    """A library may take it for something that only follows the file's last frame."""
    frame = PACKERS[packing](LINES)
    for place in range(4):
        path = tmp_path / f"in{place}.jsonl"
        path.write_bytes(frame + frame[:place] + bytes([frame[place] ^ 0xFF]) + frame[place + 1 :])
        with pytest.raises(UserError, match=rf"{path.name}: cannot be read \(.*\); check or copy the file again"):
            read(path)


def test_every_cut_of_an_xz_file_is_found_and_much_in_few_bytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    frame = lzma.compress(LINES)
    path.write_bytes(frame + bytes(8) + frame + bytes(4))
    assert read(path) == ["one", "two"] * 2
    for size in range(len(frame) + 9, 2 * len(frame) + 8):
        path.write_bytes((frame + bytes(8) + frame)[:size])
        with pytest.raises(UserError, match="cannot be read"):
            read(path)
    count = 3 << 20
    path.write_bytes(lzma.compress(b'{"text": "' + b"x" * count + b'"}\n') + frame)
    assert [len(text) for text in read(path)] == [count, 3, 3]


def test_zstd_is_read_as_by_its_library(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d %s"}\n' % (i, bytes(b % 26 + 97 for b in os.urandom(i % 700))) for i in range(4000))
    path = tmp_path / "in.jsonl.zst"
    pieces = [lines[at : at + 300_000] for at in range(0, len(lines), 300_000)]
    path.write_bytes(b"".join(map(zstandard.compress, pieces)))
    assert read(path) == [orjson.loads(line)["text"] for line in lines.splitlines()]


def test_archives_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"some text\n")
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    content = (tmp_path / "tar").read_bytes()
    for name, stored in (("b.txt", content), ("b.txt.gz", gzip.compress(content)), ("c.jsonl", b"7z\xbc\xaf\x27\x1c")):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(UserError, match=rf"{name}: is packed as (tar|7z), which cannot be read"):
            read(tmp_path / name)


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("task_bytes", [0, 3, 7])
def test_no_byte_order_mark_becomes_text(tmp_path: Path, packing: str, task_bytes: int) -> None:
    pack = PACKERS[packing]
    path = tmp_path / "in.txt"
    # As `cat` joins files that have one each; within a line the character may be meant.
    path.write_bytes(pack(MARK + b"one\r\n" + MARK + b"two\r\nx\xef\xbb\xbfy\n" + MARK + b"\n" + MARK))
    assert read(path, task_bytes=task_bytes) == ["one", "two", "x\ufeffy"]
    assert read(path, "file") == ["one\r\ntwo\r\nx\ufeffy\n\n"]
    path = tmp_path / "in.jsonl"
    path.write_bytes(pack(MARK + b'{"text": "one"}\n' + MARK + b'{"text": "two"}\n' + MARK + b"\n" + MARK))
    assert read(path, task_bytes=task_bytes) == [text for text, _ in texts([path], "text")] == ["one", "two"]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-16-le", "utf-32-be"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_other_encodings_are_refused(tmp_path: Path, packing: str, encoding: str, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    mark = "" if encoding in ("utf-16", "utf-32") or suffix == ".txt" else "\ufeff"
    path.write_bytes(PACKERS[packing]((mark + LINES.decode()).encode(encoding)))
    with pytest.raises(UserError, match=r"in\.(txt|jsonl): is in UTF-(16|32).*; convert it to UTF-8"):
        read(path)
