"""What `--input` may name: files, folders, patterns, URLs; and that damaged or packed files are told."""

from __future__ import annotations

import bz2
import gzip
import http.server
import lzma
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.reading.inputs import find_inputs, open_stored, unpack
from data_tools.reading.tasks import cut_tasks
from data_tools.reading.text import line_rows
from data_tools.reading.texts import texts
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows
from tests.helpers.processes.command import Command


def names(*words: object) -> list[str]:
    return [file.name for file in find_inputs([str(word) for word in words])]


def touch(folder: Path, *parts: str) -> list[str]:
    for part in parts:
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
    return [str(folder / part) for part in parts]


def test_a_folder_gives_what_it_knows_in_the_order_of_names(tmp_path: Path) -> None:
    known = touch(tmp_path, "a.jsonl", "b/c.json.gz", "b/d.parquet", "e.txt.zst", "f.ndjson.bz2")
    touch(tmp_path, "README.md", "_temporary/x.jsonl", ".hidden.jsonl", "b/.git/y.txt", "z.jsonl.tmp", "a.csv")
    assert names(tmp_path) == sorted(known)
    assert names(f"file://{tmp_path}") == sorted(known)
    assert names(tmp_path / "**/*.parquet", tmp_path / "a.jsonl") == [known[2], known[0]]
    assert [file.format for file in find_inputs([tmp_path])] == ["json", "json", "parquet", "text", "json"]
    # Named itself, a file of any name is JSON lines; a name with the signs of a pattern is still a name.
    assert names(*touch(tmp_path, "corpus.part-1", "set[1].jsonl")) == [
        str(tmp_path / "corpus.part-1"),
        str(tmp_path / "set[1].jsonl"),
    ]


def test_wrong_inputs_are_told_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "only/notes.md", "a.zip", "c.jsonl")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    (tmp_path / "d.jsonl").write_bytes(b"PK\x03\x04 a zip archive")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere.jsonl").symlink_to("gone.jsonl")
    for words, message in (
        ([], "--input: name at least one"),
        ([""], "--input: a name is empty"),
        ([tmp_path / "no.jsonl"], r"no\.jsonl: input not found"),
        ([tmp_path / "*.tar"], "no file matches"),
        ([tmp_path / "only"], r"is a folder without files of .*; name the files themselves \(left out notes\.md\)"),
        ([tmp_path / "a.zip"], r"\.zip cannot be read; unpack it"),
        ([tmp_path / "b.parquet.gz"], "packed once more"),
        ([tmp_path / "c.jsonl", tmp_path / "c.json*"], "is named twice"),
        ([tmp_path / "d.jsonl"], r"d\.jsonl: is packed as zip, which cannot be read"),
        ([tmp_path / "pipe"], "is a pipe and no file; files are read again"),
        ([tmp_path / "nowhere.jsonl"], r"is a link to gone\.jsonl, which leads nowhere"),
        ([tmp_path / "now*.jsonl"], r"is a link to gone\.jsonl, which leads nowhere"),
        (["memory://nowhere/a.jsonl"], "memory://nowhere/a.jsonl: input not found"),
        (["nosuch://x/a.jsonl"], "cannot be opened"),
    ):
        with pytest.raises(UserError, match=message):
            find_inputs(words)


def test_the_texts_of_files_of_several_formats_come_in_turn(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "a"}, "", {"text": "b", "domain": "d"}])
    (tmp_path / "b.txt").write_text("c\n\nd\n")
    assert list(texts([tmp_path], "text")) == [("a", ""), ("b", "d"), ("c", ""), ("d", "")]


PACKERS = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".lz4": lambda content: pa.compress(content, "lz4", asbytes=True),
    ".xz": lzma.compress,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


@pytest.mark.parametrize("suffix", PACKERS)
# After two letters, since what is packed may not begin as an archive or as UTF-16 does.
@given(share=st.floats(0, 1, exclude_max=True), data=st.binary(max_size=50).map(lambda rest: b"aa" + rest))
def test_a_file_that_is_cut_off_anywhere_is_refused(folder: Path, suffix: str, share: float, data: bytes) -> None:
    packed = PACKERS[suffix](data * 1000)
    path = folder / f"in.txt{suffix}"
    path.write_bytes(packed)
    file = find_inputs([path])[0]
    with open_stored(file) as stored:
        assert unpack(file, stored).read() == data * 1000
    path.write_bytes(packed[: max(int(share * len(packed)), 1)])
    for found in (file, find_inputs([path])[0]):
        with pytest.raises(UserError, match="cannot be read"), open_stored(found) as stored:
            unpack(found, stored).read()


@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_any_file_system_of_fsspec(tokenizer_path: Path, tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"row {i} of some"} for i in range(50)]
    content = write_rows(tmp_path / "in.jsonl", rows).read_bytes()
    settings = Settings(tokenizer_path)
    preprocess([tmp_path / "in.jsonl"], tmp_path / "local", settings, task_bytes=100)
    with fsspec.open(f"memory://folder{suffix}/part.jsonl{suffix}", "wb") as file:
        file.write(PACKERS.get(suffix, bytes)(content))
    for word in (f"memory://folder{suffix}", f"memory://folder{suffix}/*.jsonl{suffix}"):
        assert names(word) == [f"memory:///folder{suffix}/part.jsonl{suffix}"]
        preprocess([word], tmp_path / "remote", settings, task_bytes=100)
        for end in (".bin", ".idx", ".meta.parquet"):
            local, remote = (tmp_path / f"{name}_text_document{end}" for name in ("local", "remote"))
            assert local.read_bytes() == remote.read_bytes()


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """The standard server, and parts of files as any web store gives them."""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        content = Path(self.translate_path(self.path)).read_bytes()
        part = content[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: RangeHandler(*arguments, directory=str(tmp_path))
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_web_server_and_worker_processes(tokenizer_path: Path, tmp_path: Path, server: str, command: Command) -> None:
    write_rows(tmp_path / "in.jsonl", [{"text": f"row {i} of some"} for i in range(300)])
    common = ("--tokenizer-model", tokenizer_path, "--workers", 2, "--task-bytes", 3000)
    for word, name in ((f"{server}/in.jsonl", "remote"), (tmp_path / "in.jsonl", "local")):
        done = command("preprocess", "--input", word, "--output-prefix", tmp_path / name, *common)
        assert done.returncode == 0, done.stderr
    local, remote = (tmp_path / f"{name}_text_document.bin" for name in ("local", "remote"))
    assert local.read_bytes() == remote.read_bytes()
    failed = command("preprocess", "--input", f"{server}/no.jsonl", "--output-prefix", tmp_path / "no", *common)
    assert failed.returncode == 2
    assert failed.stderr == f"error: {server}/no.jsonl: input not found; check the path\n"


def test_a_password_in_a_url_is_in_no_file_and_no_line(
    tokenizer_path: Path, tmp_path: Path, server: str, command: Command
) -> None:
    """A wrong row among them, so that bad rows and the summary are written too."""
    write_rows(tmp_path / "in.jsonl", ['{"text": ', *({"text": f"row {i} of some"} for i in range(300))])
    url = server.replace("http://", "http://user:pa55word-1@") + "/in.jsonl"
    output = tmp_path / "out" / "x"
    common = ("--output-prefix", output, "--tokenizer-model", tokenizer_path, "--workers", 1, "--max-bad-rows", 1)
    done = command("preprocess", "--input", url, *common)
    assert done.returncode == 0, done.stderr
    missing = command("preprocess", "--input", url.replace("in.jsonl", "none.jsonl"), *common)
    assert missing.returncode == 2 and "none.jsonl: " in missing.stderr
    assert "pa55word-1" not in done.stdout + done.stderr + missing.stdout + missing.stderr
    files = [path for path in output.parent.rglob("*") if path.is_file()]
    assert any("bad_rows" in path.name for path in files)
    assert not [path for path in files if b"pa55word-1" in path.read_bytes() or "pa55word-1" in str(path)]

    first, second = (find_inputs([url.replace("pa55word-1", word)])[0] for word in ("pa55word-1", "another"))
    assert first.name == second.name and first.location != second.location


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"text": "b"}]', '[\n  {\n    "text": "a"\n  }\n]\n', '\ufeff [ {"text": "a"}]']
)
def test_a_file_that_is_one_json_array_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"in\.jsonl: is one JSON array, not JSON lines .* jq -c '\.\[\]' FILE"):
        find_inputs([path])
    # Lists of other things than objects are rows that are none, of which a file may have some.
    path.write_text('[1, 2]\n{"text": "a"}\n')
    (task,) = cut_tasks(find_inputs([path]), Settings(Path()), {})
    (rows,) = line_rows(task, Settings(Path()))
    assert rows.texts["text"] == ["a"] and [place.reason for place in rows.bad] == ["a JSON array, not an object"]
