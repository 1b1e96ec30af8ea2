"""Every file that a user expects to be read is read, once, or named: links, permissions, suffixes, what is hidden."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from glob import glob
from pathlib import Path

import fsspec
import pytest

from data_tools.reading.inputs import find_inputs
from data_tools.reading.listing import list_pattern
from data_tools.reading.texts import texts
from data_tools.tokenizers.tokenizer_formats import tokenizer_file
from megatron_kaiyuan.errors import UserError


def names(*words: object) -> list[str]:
    return [file.name for file in find_inputs([str(word) for word in words])]


def touch(folder: Path, *parts: str) -> list[str]:
    for part in parts:
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f'{{"text": "{part}"}}\n'.encode())
    return [str(folder / part) for part in parts]


def test_links_are_followed_and_each_file_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = touch(tmp_path / "data", "a.jsonl", "v3/b.jsonl") + touch(tmp_path / "disk", "deep/c.jsonl")
    data = tmp_path / "data"
    (data / "linked").symlink_to("../disk")
    (data / "latest").symlink_to("v3")
    (data / "self").symlink_to(".")
    (tmp_path / "disk" / "back").symlink_to(data)
    (data / "again.jsonl").symlink_to("a.jsonl")
    os.link(data / "a.jsonl", data / "hard.jsonl")
    wanted = sorted([known[0], known[1], str(data / "linked/deep/c.jsonl")])
    assert names(data) == names(f"{data}/") == names(data / "**/*.jsonl") == wanted
    said = capsys.readouterr().err
    assert f"{data}/again.jsonl (the same file as {known[0]})" in said
    assert f"{data}/hard.jsonl (the same file as {known[0]})" in said


@pytest.mark.parametrize(
    "second",
    [
        lambda path: f"./{os.path.relpath(path)}",
        lambda path: os.path.relpath(path),
        lambda path: f"file://{path}",
        lambda path: f"file://localhost{path}".replace("a b", "a%20b"),
        lambda path: path.parent,
        lambda path: path.parent / "*.jsonl",
        lambda path: f"{path}/",
        lambda path: path.parent / ".." / path.parent.name / path.name,
        lambda path: path.parent.parent / "linked.jsonl",
        lambda path: path.parent.parent / "hard.jsonl",
        lambda path: path.parent.parent / "folder",
    ],
)
def test_a_file_under_two_spellings_is_named_twice(tmp_path: Path, second: Callable[[Path], object]) -> None:
    path = Path(touch(tmp_path / "data", "a b.jsonl")[0])
    (tmp_path / "linked.jsonl").symlink_to(path)
    (tmp_path / "folder").symlink_to("data")
    os.link(path, tmp_path / "hard.jsonl")
    assert len(names(second(path))) == 1
    for words in ((path, second(path)), (second(path), path)):
        with pytest.raises(UserError, match="is named twice by --input"):
            names(*words)
    with pytest.raises(UserError, match="is named twice by --input"):
        list(texts([str(path), str(second(path))], "text"))


def test_a_remote_file_under_two_spellings_is_named_twice() -> None:
    with fsspec.open("memory://spelled/a.jsonl", "wb") as file:
        file.write(b"{}\n")
    for second in ("memory:///spelled/a.jsonl", "memory://spelled", "memory://spelled/*"):
        with pytest.raises(UserError, match="is named twice by --input"):
            names("memory://spelled/a.jsonl", second)


def test_suffixes_in_other_spellings_are_known(tmp_path: Path) -> None:
    known = touch(tmp_path, "A.JSONL", "b.Json", "c.NDJSON", "d.TXT", "e.PARQUET", "f.jsonl.gzip", "g.JSON.GZ")
    known += touch(tmp_path, "h.jsonl.zstd", "i.jsonl.ZST", "j.txt.bzip2", "k.jsonl.xz", "l.jsonl.lz4")
    assert names(tmp_path) == sorted(known)
    formats = ["json", "json", "json", "text", "parquet", "json", "json", "json", "json", "text", "json", "json"]
    assert [file.format for file in find_inputs([tmp_path])] == formats


def test_what_is_left_out_of_a_folder_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = touch(tmp_path, "a.jsonl")
    touch(tmp_path, "README.md", ".git/x.jsonl", "_tmp/y.jsonl", ".b.jsonl", "c.csv", "d.jsonl.bak", "e.tgz")
    os.mkfifo(tmp_path / "f.jsonl")
    (tmp_path / "empty").mkdir()
    assert names(tmp_path) == names(tmp_path) == known
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        f"--input {tmp_path}: left out .b.jsonl (hidden), .git (hidden), README.md, _tmp (hidden), c.csv and 3 more;"
    )
    assert find_inputs([tmp_path], quiet=True)
    with pytest.raises(UserError, match=r"is a folder without files"):
        names(tmp_path / "empty")


def test_a_pattern_names_the_folders_that_match_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = touch(tmp_path, "a.jsonl")
    touch(tmp_path, "sub/b.jsonl")
    assert names(tmp_path / "*") == known
    assert f"left out {tmp_path}/sub (a folder)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no file matches; check the pattern \(left out .*/sub \(a folder\)\)"):
        names(tmp_path / "s*")


PATTERNS = """
* ** **/* */* sub/* sub/** s*/**/*.jsonl **/deep/* **/*.jsonl .* */.* [a-s]* ./*.jsonl sub/../* **/sub/**/* *.[jt]*
a?json* nowhere/* */deep/b.jsonl s*/ **/
"""


@pytest.mark.parametrize("pattern", PATTERNS.split())
def test_patterns_match_what_the_standard_library_matches(tmp_path: Path, pattern: str) -> None:
    touch(
        tmp_path,
        "a.jsonl",
        "sub/b.jsonl",
        "sub/deep/b.jsonl",
        "sub/deep/er/c.txt",
        ".h/d.jsonl",
        "sub/.e.jsonl",
        "t.txt",
    )
    word = f"{tmp_path}/{pattern}"
    wanted = {os.path.normpath(name) for name in glob(word, recursive=True) if os.path.isfile(name)}
    found = list_pattern(word).files
    assert {os.path.normpath(name) for name in found} == wanted
    assert len(found) == len(wanted)


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jsonl")
    for name, target in (("data/gone", "nowhere"), ("data/loop", "loop")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(UserError, match=rf"{name}: is a link to {target}, which leads nowhere; mend or remove it"):
            names(tmp_path / "data")
        (tmp_path / name).unlink()
    (tmp_path / "data" / ".#a.jsonl").symlink_to("user@host")
    assert len(names(tmp_path / "data")) == 1


def as_nobody(call: Callable[[], object]) -> str:
    """What the call raises when a user without any permission makes it."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            call()
            os.write(theirs, b"nothing")
        except BaseException as error:
            os.write(theirs, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with open(ours, "rb") as said:
        return said.read().decode()


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*.jsonl", "*/*.jsonl", "locked/a.jsonl", "linked/a.jsonl"])
@pytest.mark.parametrize("locked", ["locked", "locked/a.jsonl"])
def test_what_cannot_be_read_is_named(pattern: str, locked: str) -> None:
    # Not pytest's folder, into which nobody else may look.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        touch(folder, "b.jsonl", "locked/a.jsonl")
        (folder / "linked").symlink_to("locked")
        (folder / locked).chmod(0)
        said = as_nobody(lambda: find_inputs([str(folder / pattern)]))
        (folder / locked).chmod(0o755)
    if pattern == "*.jsonl":
        assert said == "nothing"
    else:
        assert said.startswith("UserError: ")
        assert "Permission denied" in said
        assert "locked" in said or "linked" in said


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jsonl")
    with open(path, "wb") as file:
        file.write(b"{}\n")
    for word in (os.fsdecode(path), str(tmp_path), str(tmp_path / "*.jsonl")):
        with pytest.raises(UserError, match=r"caf\\xe9\.jsonl: its name is not UTF-8, .*; rename it"):
            find_inputs([word])
    with pytest.raises(UserError, match=r"caf\\xe9\.jsonl: its name is not UTF-8"):
        tokenizer_file(Path(os.fsdecode(path)))
