"""Command-line options that take several values the way Megatron's do: `--input a.jsonl b.jsonl`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class SeveralValuesCommand(TyperCommand):
    """A command whose list options take any number of values each, and may also be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        return super().parse_args(ctx, _repeat_names(args, names))


def _repeat_names(args: list[str], names: set[str]) -> list[str]:
    """Turn `--input a b` into `--input a --input b`; a word that starts with `-` ends the values."""
    repeated: list[str] = []
    current, values = "", 0
    for word in args:
        if word.startswith("-") and word != "-":
            current, values = (word if word in names else ""), 0
        elif current:
            if values:
                repeated.append(current)
            values += 1
        repeated.append(word)
    return repeated
