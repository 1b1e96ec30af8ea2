"""Paths as users write them. Fields of recipes (`config.Section`) and options (`command_line.App`) pass here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError


def user_path(path: str | Path) -> Path:
    """A path with `~` or `~name` at its beginning replaced by that home folder, as a shell does for most words.

    Raises:
        UserError: there is no user of that name, nor a file.
    """
    text = os.fspath(path)
    if not text.startswith("~"):
        return Path(path)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        if os.path.lexists(text):
            return Path(path)
        name = text.partition("/")[0]
        raise UserError(f"{text}: there is no user {name[1:]!r}, whose home folder {name} would be") from error


def user_paths(value: Any) -> Any:
    """A value with every path in it, also in lists and mappings, as `user_path` gives it."""
    if isinstance(value, Path):
        return user_path(value)
    if isinstance(value, list | tuple):
        return type(value)(user_paths(entry) for entry in value)
    if isinstance(value, dict):
        return {name: user_paths(entry) for name, entry in value.items()}
    return value


def path_word(word: str) -> str:
    """For `typer.Option(parser=...)`: a file, pattern or URL as a string, with `NAME=` before it or not."""
    name, equals, path = word.partition("=")
    if word.startswith("~"):
        name, equals, path = "", "", word
    if not path.startswith("~") or os.path.lexists(word):
        return word
    return f"{name}{equals}{user_path(path)}"
