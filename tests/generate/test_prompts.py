from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.generate.prompts import prompts_of, read_prompts


def test_a_line_or_an_object_is_a_prompt(tmp_path: Path) -> None:
    text, rows = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("\ufeffone \r\n\n {two}\u2028still two\n", encoding="utf-8")
    assert prompts_of([], text) == ["one ", " {two}\u2028still two"]
    rows.write_text('{"prompt": "one\\nline"}\n\n{"prompt": "two", "more": 1}', encoding="utf-8")
    assert prompts_of([], rows) == ["one\nline", "two"]
    assert prompts_of(["one", "two"], None) == ["one", "two"]
    assert prompts_of([], None) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("blank.txt", b"\n \n", "blank.txt: has no prompt; write one a line"),
        ("empty.jsonl", b"", "empty.jsonl: has no prompt"),
        ("bytes.txt", b"\xff\xfe", r"bytes.txt: is not text in UTF-8 \(.* at byte 0\)"),
        ("rows.jsonl", b'{"prompt": "one"}\n{"text": "two"}', "rows.jsonl, line 2: wants an object with a text as its"),
        ("blank.jsonl", b'\n{"prompt": " "}', "blank.jsonl, line 2: wants an object"),
        ("list.jsonl", b"[1]", "list.jsonl, line 1: wants an object"),
        ("torn.jsonl", b'{"prompt": "one', "torn.jsonl, line 1: is not JSON"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl, line 1: is not JSON"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


def test_wrong_prompts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt: prompts cannot be read \(No such file or directory\)"):
        prompts_of([], tmp_path / "none.txt")
    with pytest.raises(UserError, match="prompt 2: is empty; write the text to continue"):
        prompts_of(["one", " "], None)
    with pytest.raises(UserError, match="--prompt-file: there are prompts on the command line too"):
        prompts_of(["one"], tmp_path / "none.txt")
