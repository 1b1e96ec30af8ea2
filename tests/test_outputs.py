"""The rule of what may be written over, by itself; each command's use of it is tested beside the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_kaiyuan import files
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, publish, remove_leftovers, settle, write_sealed_json
from megatron_kaiyuan.outputs import (
    Output,
    check_place,
    claim,
    identity_of,
    journal_of,
    recorded_folder,
    unlisted,
    write_record,
)

FORMAT = "kaiyuan-test"
EARLIER = recorded_folder(FORMAT)


def make(folder: Path, identity: str, content: str = "made", force: bool = False) -> None:
    place = Output(folder, "a test's product")
    with claim(place, identity, EARLIER, force=force), atomic_path(place.path, replace_folder=True) as new:
        new.mkdir()
        (new / "data.txt").write_text(content)
        write_record(new, FORMAT, identity)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_product_replaces_itself_and_another_one_only_by_force(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    make(folder, "first", "1")
    make(folder, "first", "1 again")
    assert (folder / "data.txt").read_text() == "1 again"
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"made: holds a test's product already, made from something else.*--force"):
        make(folder, "second", "2")
    assert tree(tmp_path) == before
    make(folder, "second", "2", force=True)
    assert (folder / "data.txt").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("damage", ["foreign", "added", "added deep", "linked", "edited", "unsealed", "other format"])
def test_what_the_command_did_not_make_is_never_replaced(tmp_path: Path, damage: str, force: bool) -> None:
    folder = tmp_path / "made"
    if damage == "foreign":
        folder.mkdir()
        (folder / "thesis.txt").write_text("years")
    else:
        make(folder, "first")
    if damage == "added":
        (folder / "README.md").write_text("my model card")
    if damage == "added deep":
        (folder / "gguf").mkdir()
        (folder / "gguf" / "model.gguf").write_bytes(b"weights")
    if damage == "linked":
        (folder / "link").symlink_to("/nonexistent")
    if damage == "edited":
        (folder / "data.txt").write_text("edited")
    if damage == "unsealed":
        (folder / "manifest.json").write_text("{}")
    if damage == "other format":
        (folder / "manifest.json").unlink()
        write_record(folder, "kaiyuan-other", "first")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="nothing is replaced that this command did not make"):
        make(folder, "first", force=force)
    assert tree(tmp_path) == before


def test_places_that_cannot_be_written_are_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path, kind, message in (
        (tmp_path, "file", "is a folder, but --output names the file to write"),
        (tmp_path / "file", "folder", "exists and is not"),
        (tmp_path / "file" / "deep" / "x", "folder", "is not a folder, so"),
        (Path(), "folder", "names no file or folder of its own"),
        (tmp_path / "..", "folder", "names no file or folder of its own"),
    ):
        with pytest.raises(UserError, match=message):
            check_place(Output(path, "a thing", kind=kind))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"needs 1000000000\.00 GB, but"):
        check_place(Output(tmp_path / "big", "a thing"), 10**18)
    # What does not exist yet is judged by the first folder that does.
    check_place(Output(tmp_path / "a" / "b" / "c", "a thing"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_folder_without_permission_is_named() -> None:
    """Root may write everywhere, so root looks as somebody else here."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match="cannot be written to"):
                check_place(Output(Path(name) / "x", "a thing"))
        finally:
            os.seteuid(user)


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    make(tmp_path / "real", "first", "1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make(tmp_path / "link", "first", "2")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "data.txt").read_text() == "2"


def test_two_at_once_take_turns(tmp_path: Path) -> None:
    """Threads hold flock on descriptors of their own, as processes do."""
    errors = []

    def work(number: int) -> None:
        try:
            make(tmp_path / "made", "same", f"by {number} " * 1000)
        except UserError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not unlisted(tmp_path / "made", ["data.txt"]) and [path.name for path in tmp_path.iterdir()] == ["made"]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = ["made.tmp", "made.backup.tmp", "made.12345678.tmp.txt", "other.12345678.tmp", "made.1234567g.tmp"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "made.0123abcd.tmp").mkdir()
    (tmp_path / "made.0123abcd.tmp" / "half").write_text("half")
    (tmp_path / "made.0123abcd.tmp.4567cdef.tmp").write_text("half")
    make(tmp_path / "made", "first")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["made", *mine])


def test_a_folder_is_exchanged_also_where_the_file_system_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for content in ("1", "2"):
        make(tmp_path / "made", "first", content)
    assert (tmp_path / "made" / "data.txt").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    # Killed between its two renames: the older product comes back.
    os.rename(tmp_path / "made", tmp_path / "made.0123abcd.replaced.tmp")
    settle(journal_of(tmp_path / "made"), tmp_path / "made")
    assert (tmp_path / "made" / "data.txt").read_text() == "2"


KILLED = """
import os, signal, sys
from pathlib import Path
from megatron_kaiyuan import files
calls, limit = 0, int(sys.argv[2])
def counted(function):
    def call(*arguments, **options):
        global calls
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*arguments, **options)
    return call
for name in ("rename", "replace", "unlink", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
Path.unlink = counted(Path.unlink)
folder = Path(sys.argv[1])
for name in "abc":
    (folder / f"{name}.new").write_text(f"new {name}")
files.publish([(folder / f"{name}.new", folder / name) for name in "abc"], folder / "journal.json")
"""


def test_several_files_are_published_whole_whenever_the_process_is_killed(tmp_path: Path) -> None:
    """SIGKILL before each call that changes a name: afterwards all are old, or `settle` makes all new."""
    outcomes = set()
    for limit in range(40):
        folder = tmp_path / str(limit)
        folder.mkdir()
        for name in "abc":
            (folder / name).write_text(f"old {name}")
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(limit)], check=False)
        settle(folder / "journal.json")
        found = {(folder / name).read_text().split()[0] for name in "abc"}
        assert len(found) == 1 and not (folder / "journal.json").exists()
        outcomes |= {(done.returncode == -signal.SIGKILL, *found)}
        if done.returncode == 0:
            break
    assert outcomes == {(True, "old"), (True, "new"), (False, "new")}


@contextmanager
def somebody_else() -> Iterator[Path]:
    """A folder of the user nobody's, who looks and writes as long as the block runs: root may remove everything."""
    if os.geteuid():
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_that_cannot_be_removed_is_as_it_was(monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    with somebody_else() as place:
        make(place / "made", "first", "1")
        (place / "made" / "a").write_text("removed before the other")
        (place / "made" / "deep").mkdir()
        (place / "made" / "deep" / "kept").write_text("kept")
        os.chmod(place / "made" / "deep", 0o555)
        before = tree(place)
        with (
            pytest.raises(UserError, match="made/deep/kept: the earlier one cannot be removed"),
            atomic_path(place / "made", replace_folder=True) as new,
        ):
            new.mkdir()
        assert tree(place) == before and [path.name for path in place.iterdir()] == ["made"]


def test_a_protected_product_is_refused_before_the_work() -> None:
    with somebody_else() as place:
        make(place / "made", "first", "1")
        os.chmod(place / "made" / "data.txt", 0o444)
        with pytest.raises(UserError, match=r"made/data\.txt: is write-protected or mounted there"):
            make(place / "made", "first", "2")
        assert (place / "made" / "data.txt").read_text() == "1"


def test_of_several_files_that_cannot_all_be_removed_all_are_as_they_were() -> None:
    with somebody_else() as place:
        for name in "abc":
            (place / name).write_text(f"old {name}")
            (place / f"{name}.new").write_text(f"new {name}")
        os.seteuid(0)
        os.chown(place / "b", 0, 0)
        os.chmod(place, 0o1777)  # as /tmp: others' files stay
        os.seteuid(65534)
        with pytest.raises(UserError, match="b: the earlier one cannot be removed"):
            publish([(place / f"{name}.new", place / name) for name in "abc"], place / "journal.json")
        assert tree(place) == {name: f"old {name}".encode() for name in "abc"}
        # Also when the killed process had got further than the one that finishes its work.
        for name in "abc":
            (place / f"{name}.new").write_text(f"new {name}")
        os.rename(place / "c", place / "c.0123abcd.tmp")
        names = [[f"{name}.new", name, f"{name}.0123abcd.tmp"] for name in "abc"]
        write_sealed_json(place / "journal.json", {"publish": names})
        with pytest.raises(UserError, match="b: the earlier one cannot be removed"):
            settle(place / "journal.json")
        assert tree(place) == {name: f"old {name}".encode() for name in "abc"}


def test_leftovers_that_cannot_be_removed_stop_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with somebody_else() as place:
        (place / "made.0123abcd.tmp").mkdir()
        (place / "made.0123abcd.tmp" / "kept").write_text("kept")
        os.chmod(place / "made.0123abcd.tmp", 0o555)
        make(place / "made", "first")
        assert "made.0123abcd.tmp: left by a killed process, cannot be removed" in capsys.readouterr().err
        os.chmod(place / "made.0123abcd.tmp", 0o755)


def test_publishing_removes_the_journal(tmp_path: Path) -> None:
    (tmp_path / "a.new").write_text("a")
    publish([(tmp_path / "a.new", tmp_path / "a")], tmp_path / "journal.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    remove_leftovers(tmp_path / "a")


def test_an_identity_is_that_of_its_parts() -> None:
    assert identity_of("a", [1, {"x": Path("p")}]) == identity_of("a", [1, {"x": "p"}])
    assert identity_of("a", [1]) != identity_of("a", [1, None])


def test_a_place_where_no_file_can_be_made_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^/proc/x: no file can be made in /proc .*; name another --output$"):
        make(Path("/proc/x"), "first")


def test_the_look_at_a_place_leaves_nothing(tmp_path: Path) -> None:
    check_place(Output(tmp_path / "deep" / "made", "a test's product"))
    assert not list(tmp_path.iterdir())
