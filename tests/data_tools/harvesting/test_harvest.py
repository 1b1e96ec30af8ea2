"""The harvest on this machine's own text, and on folders made for a case."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.harvesting import harvest_sources
from data_tools.harvesting.harvest import DOMAINS, SHORTEST_TEXT, harvest
from data_tools.harvesting.harvest_sources import SourceFile
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import read_rows
from tests.helpers.processes.command import Command

PROSE = "The quality of a document is more than its length. A reader wants sentences that say something new. "
CHINESE = "这是一份用于测试的目录，其中每一条信息都足够长。"


def all_rows(folder: Path, split: str) -> list[dict]:
    return [row for path in sorted(folder.glob(f"*.{split}.jsonl")) for row in read_rows(path)]


def source_files(rows: list[dict]) -> set[str]:
    return {row["source"].partition(":")[0] for row in rows}


def test_rows_are_documents_of_the_machine(harvest_as_written: Path) -> None:
    rows = all_rows(harvest_as_written, "train")
    assert {row["domain"] for row in rows} == {"code", "math"}
    assert len({row["text"] for row in rows + all_rows(harvest_as_written, "heldout")}) == len(rows) + len(
        all_rows(harvest_as_written, "heldout")
    )
    for row in rows:
        assert list(row) == ["text", "domain", "source"]
        assert len(row["text"]) >= SHORTEST_TEXT
        assert not Path(row["source"]).is_absolute()
        assert sys.prefix not in row["source"]


def test_no_source_file_is_in_both_splits(tmp_path: Path) -> None:
    list(harvest(tmp_path, megabytes=0.2, held_out=0.3, domains=["code", "english"]))
    train, held_out = source_files(all_rows(tmp_path, "train")), source_files(all_rows(tmp_path, "heldout"))
    assert train and held_out
    assert not train & held_out


def test_code_of_packages_is_the_text_of_their_files_and_held_out_with_their_docstrings(tmp_path: Path) -> None:
    list(harvest(tmp_path, megabytes=0.3, held_out=0.3, domains=["code", "english"], packages=True))
    train, held_out = all_rows(tmp_path, "train"), all_rows(tmp_path, "heldout")
    assert not source_files(train) & source_files(held_out)
    installed = Path(pytest.__file__).parents[1]
    checked = 0
    for row in train:
        path = installed / row["source"]
        if row["domain"] == "code" and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert row["text"] == text or (text.startswith(row["text"]) and row["text"].endswith("\n"))
            checked += 1
    assert checked >= 10
    without = tmp_path / "without"
    list(harvest(without, megabytes=0.3, held_out=0.3, domains=["code"]))
    assert not any((installed / row["source"]).is_file() for row in all_rows(without, "train"))


def test_size_is_as_asked(harvest_as_written: Path) -> None:
    for domain in ("code", "math"):
        sizes = [len(row["text"].encode()) for row in read_rows(harvest_as_written / f"{domain}.train.jsonl")]
        assert sum(sizes) >= 200_000 > sum(sizes[:-1])
        held_out = [len(row["text"].encode()) for row in read_rows(harvest_as_written / f"{domain}.heldout.jsonl")]
        assert sum(held_out) >= 20_000 > sum(held_out[:-1])


def test_the_same_machine_gives_the_same_bytes(harvest_as_written: Path, tmp_path: Path) -> None:
    list(harvest(tmp_path, megabytes=0.2, held_out=0.1, domains=["code", "math"]))
    for path in harvest_as_written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="holds a harvest of text already, made from something else"):
        list(harvest(tmp_path, megabytes=0.2, held_out=0.1, domains=["code"], seed=1))
    list(harvest(tmp_path, megabytes=0.2, held_out=0.1, domains=["code"], seed=1, force=True))
    assert (tmp_path / "code.train.jsonl").read_bytes() != (harvest_as_written / "code.train.jsonl").read_bytes()


def use_files(monkeypatch: pytest.MonkeyPatch, domain: str, texts: dict[str, str], folder: Path) -> None:
    """Make a domain of the given files."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")

    def files() -> Iterator[SourceFile]:
        for name in texts:
            yield SourceFile(name, "", folder / name, lambda path: [("", path.read_text(encoding="utf-8"))])

    monkeypatch.setitem(DOMAINS, domain, files)


def test_exact_duplicates_are_dropped_over_all_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: PROSE * 3 + name[0] for name in ("a1", "a2", "b1")}
    use_files(monkeypatch, "one", texts, tmp_path)
    use_files(monkeypatch, "two", {"a3": PROSE * 3 + "a", "c1": PROSE * 3 + "c", "short": "crumb"}, tmp_path)
    results = {result.domain: result for result in harvest(tmp_path / "out", domains=["one", "two"])}
    assert results["one"].duplicates == 1
    assert results["two"].duplicates == 1
    found = all_rows(tmp_path / "out", "train") + all_rows(tmp_path / "out", "heldout")
    assert sorted(row["text"][-1] for row in found) == ["a", "b", "c"]


def test_a_domain_of_two_files_has_a_held_out_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_files(monkeypatch, "few", {"x": PROSE * 3, "y": PROSE * 4}, tmp_path)
    list(harvest(tmp_path / "out", held_out=0.001, domains=["few"]))
    assert len(read_rows(tmp_path / "out" / "few.train.jsonl")) == 1
    assert len(read_rows(tmp_path / "out" / "few.heldout.jsonl")) == 1


def test_a_domain_without_text_is_left_out_and_its_old_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_files(monkeypatch, "few", {"x": PROSE * 3, "y": PROSE * 4}, tmp_path)
    list(harvest(tmp_path / "out", domains=["few"]))
    use_files(monkeypatch, "few", {}, tmp_path)
    assert not next(iter([*harvest(tmp_path / "out", domains=["few"])])).documents["train"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_a_folder_with_files_of_the_user_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "code.train.jsonl"
    mine.write_text("mine")
    for force in (False, True):
        with pytest.raises(UserError, match="exists and is not a harvest of text"):
            list(harvest(tmp_path, domains=["code"], force=force))
    assert mine.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def write_catalogue(path: Path, messages: dict[str, str]) -> None:
    """A GNU message catalogue, laid out by hand: header, offsets of the originals, of the translations, strings."""
    path.parent.mkdir(parents=True)
    pairs = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    count = len(pairs)
    strings, tables, at = b"", b"", 28 + 16 * count
    for column in (0, 1):
        for pair in pairs:
            raw = pair[column].encode()
            tables += struct.pack("<2I", len(raw), at + len(strings))
            strings += raw + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    path.write_bytes(header + tables + strings)


def test_chinese_comes_from_message_catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = {f"message {i:03}": f"{CHINESE}第{i}条。" for i in range(100)}
    write_catalogue(tmp_path / "locale" / "zh_CN" / "LC_MESSAGES" / "tool.mo", {**messages, "ok": "好"})
    (tmp_path / "locale" / "zh_CN" / "LC_MESSAGES" / "broken.mo").write_bytes(b"\xde\x12\x04\x95 broken")
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    found = {file.path.name: file for file in harvest_sources.chinese_files() if tmp_path in file.path.parents}
    assert found["tool.mo"].name == "locale/zh_CN/LC_MESSAGES/tool.mo"
    documents = dict(found["tool.mo"].read(found["tool.mo"].path))
    assert "\n".join(documents.values()).split("\n") == list(messages.values())
    assert len(documents) == 2
    assert "".join(text for _, text in found["broken.mo"].read(found["broken.mo"].path)) == ""


def test_a_long_source_is_cut_after_a_whole_line() -> None:
    text = "".join(f"line {i}\n" for i in range(20_000))
    cut = harvest_sources._cut_at_line(text)
    assert harvest_sources.LONGEST_TEXT - 20 < len(cut) <= harvest_sources.LONGEST_TEXT
    assert text.startswith(cut) and cut.endswith("\n")


def test_docstrings_carry_the_name_of_their_object(tmp_path: Path) -> None:
    source = '"""Top."""\nclass A:\n    """In A."""\n    async def f(self):\n        """In f."""\n'
    (tmp_path / "m.py").write_text(source)
    assert list(harvest_sources._docstrings(tmp_path / "m.py")) == [("", "Top."), ("A", "In A."), ("A.f", "In f.")]
    (tmp_path / "m.py").write_text("not python (")
    assert list(harvest_sources._docstrings(tmp_path / "m.py")) == []


@pytest.mark.parametrize("arguments", [{"megabytes": 0}, {"held_out": 0}, {"held_out": 1.0}])
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(UserError, match=next(iter(arguments)).replace("_", "-")):
        list(harvest(tmp_path, **arguments))


def test_command(tmp_path: Path, command: Command) -> None:
    done = command("harvest", tmp_path / "text", "--megabytes", 0.05, "--held-out", 0.2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("harvest: ")
    assert {"code.train.jsonl", "english.train.jsonl", "english.heldout.jsonl"} <= {
        path.name for path in (tmp_path / "text").iterdir()
    }
