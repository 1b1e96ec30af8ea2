"""Odd names in every place of the command line that takes one: a line and an exit code, never a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOT_UTF8 = os.fsdecode(b"caf\xe9")
NAMES = [".", NOT_UTF8, "s3://bucket/x"]
MORE_NAMES = ["", "/", "a" * 300, "a\nb", "[", "-"]
# Each takes a name for NAME; run in one process, because most are refused before any work.
COMMANDS = [
    "preprocess --input NAME --output-prefix x --tokenizer-model TOKENIZER --workers 1",
    "preprocess --input in.jsonl --output-prefix NAME --tokenizer-model none --workers 1",
    "preprocess --input in.jsonl --output-prefix x --tokenizer-model NAME --workers 1",
    "preprocess --input in.jsonl --output-prefix x --tokenizer-model TOKENIZER --workers 1 --json-keys NAME",
    "tokenizer train --input NAME --output t.json --vocab-size 512",
    "tokenizer train --input in.jsonl --output NAME --vocab-size 512",
    "tokenizer inspect NAME in.jsonl",
    "dedup --input NAME --output out --workers 1",
    "dedup --input none.jsonl --output NAME --workers 1",
    "score --input NAME --output out --scorer rules --workers 1",
    "score --input in.jsonl --output NAME --scorer rules --workers 1",
    "score --corpus NAME --scorer rules --workers 1",
    "merge NAME --output-prefix all",
    "verify NAME",
    "inspect NAME",
    "audit NAME --score score",
    "curriculum NAME --output phases",
]
PROGRAM = """
import contextlib, io, json, sys, traceback
from data_tools.cli import main
for words in json.load(open("commands.json")):
    sys.argv = ["kaiyuan-data", *words]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = traceback.format_exc()
    print(json.dumps([words, code, errors.getvalue()]))
"""


@pytest.mark.parametrize(
    "name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_NAMES)], ids=ascii
)
def test_any_name_is_taken_or_refused_in_one_line(tmp_path: Path, tokenizer_path: Path, name: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "one", "score": 1}\n')
    places = {"NAME": name, "TOKENIZER": str(tokenizer_path)}
    commands = [[places.get(word, word) for word in command.split()] for command in COMMANDS]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(COMMANDS)
    for words, code, errors in outcomes:
        assert code in (0, 2), (words, code)
        assert code == 0 or errors.splitlines()[-1].startswith("error: "), (words, errors)


def test_a_name_that_is_not_utf8_is_refused_before_the_work(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    words = ["preprocess", "--input", "in.jsonl", "--tokenizer-model", str(tokenizer_path), "--output-prefix", NOT_UTF8]
    done = subprocess.run([sys.executable, "-m", "data_tools", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: caf\\xe9: its name is not UTF-8, so that no manifest can record it; rename it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
