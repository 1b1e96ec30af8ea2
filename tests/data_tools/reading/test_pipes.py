"""A pipe gives its bytes once, and inputs are read several times: every command says so at once, and none hangs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from data_tools.reading.inputs import find_inputs
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows
from tests.helpers.processes.command import Command

COMMANDS = {
    "preprocess": "preprocess --input {pipe} --output-prefix {folder}/x --tokenizer-model {tokenizer} --workers 1",
    "the tokenizer": "preprocess --input {text} --output-prefix {folder}/x --tokenizer-model {pipe} --workers 1",
    "train": "tokenizer train --input {text} {pipe} --vocab-size 512 --output {folder}/t/tokenizer.json",
    "inspect": "tokenizer inspect {tokenizer} {pipe}",
    "dedup": "dedup --input {pipe} --output {folder}/d --workers 1",
    "score": "score --input {pipe} --output {folder}/s --scorer rules --workers 1",
    "audit": "audit {pipe} --score score",
    "scorer train": "scorer train --positives {text} --negatives {pipe} --output {folder}/x.bin",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_that_nobody_writes_to(tmp_path: Path, tokenizer_path: Path, command: Command, name: str) -> None:
    text, pipe = write_rows(tmp_path / "a.jsonl", [{"text": "one"}]), tmp_path / "pipe"
    os.mkfifo(pipe)
    words = COMMANDS[name].format(pipe=pipe, text=text, tokenizer=tokenizer_path, folder=tmp_path).split()
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {pipe}: is a pipe and no file; ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "pipe"]


def test_what_else_is_no_file(tmp_path: Path) -> None:
    read, write = os.pipe()
    ours = socket.socket(socket.AF_UNIX)
    ours.bind(str(tmp_path / "socket"))
    for path, kind in ((f"/dev/fd/{read}", "pipe"), (tmp_path / "socket", "socket"), ("/dev/null", "device")):
        with pytest.raises(UserError, match=f"{path}: is a {kind} and no file"):
            find_inputs([path])
    for number in (read, write):
        os.close(number)
    ours.close()


@pytest.mark.parametrize("name", ["dedup", "score"])
def test_input_without_a_document(tmp_path: Path, tokenizer_path: Path, command: Command, name: str) -> None:
    text = write_rows(tmp_path / "a.jsonl", ["", ""])
    done = command(*COMMANDS[name].format(pipe=text, folder=tmp_path).split())
    assert done.returncode == 2 and f"error: {text}: no document in 0 rows" in done.stderr
