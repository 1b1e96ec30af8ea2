"""Prompts: from the command line, a file, standard input, or a person at a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_kaiyuan.errors import UserError, system_advice


def prompts_of(words: Sequence[str], file: Path | None) -> list[str] | None:
    """The prompts that a command names; None: it names none.

    Raises:
        UserError: there are some on both ways, the file cannot be read, or a prompt is empty.
    """
    if words and file is not None:
        raise UserError("--prompt-file: there are prompts on the command line too; give one of both")
    if file is not None:
        return read_prompts(file)
    for number, text in enumerate(words, start=1):
        if not text.strip():
            raise UserError(f"prompt {number}: is empty; write the text to continue")
    return list(words) or None


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: of a .jsonl file the "prompt" of each line, of any other each line that is not blank.

    Raises:
        UserError: it cannot be read, has none, or a line is not an object with a prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: prompts cannot be read ({error.strerror}); {system_advice(error)}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise UserError(f"{path}: has no prompt; write one a line")
    if path.suffix != ".jsonl":
        return [line.removesuffix("\r") for _, line in numbered]
    return [_prompt(path, number, line) for number, line in numbered]


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}, line {number}: is not JSON; write an object with "prompt" on each line') from error
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{path}, line {number}: wants an object with a text as its "prompt"')
    return text


def typed_prompts() -> Iterator[str]:
    """Each line of standard input that is not blank, until its end; at a terminal after a sign to type."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("prompt> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")
