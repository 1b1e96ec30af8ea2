"""What every command of this project shares: one line for a user's mistake, an exit code, no stack trace."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from megatron_kaiyuan.errors import UserError, describe

Force = Annotated[
    bool, typer.Option("--force", help="replace what this command wrote there earlier from other input; nothing else")
]


class _Group(TyperGroup):
    """Tells the end of our reader from any other broken pipe; typer ends without a word for both."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if _reader_has_gone():
                # As with `| head`; the exit code is the shell's for that signal.
                os._exit(141)
            raise UserError(describe(error)) from error


def make_app(help_text: str) -> typer.Typer:
    """A typer application with this project's settings."""
    # Plain text: boxes of a width that depends on the terminal are hard to read in a job's log.
    return typer.Typer(
        cls=_Group,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def run_app(app: typer.Typer) -> None:
    """Run a command: exit 0 on success, 2 on a user's mistake, 130 on ctrl-C."""
    try:
        app()
    except (UserError, OSError) as error:
        fail(describe(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _reader_has_gone() -> bool:
    """Whether nobody reads standard output or standard error any more."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, 0)
    return bool(poll.poll(0))


def fail(message: str) -> None:
    """Print one line to standard error and exit with 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


class SeveralValuesCommand(TyperCommand):
    """A command whose list options take several values as Megatron's do, `--input a b`; they may also be repeated."""

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


def optional_value(option: str, choices: Sequence[str]) -> type[TyperCommand]:
    """A command whose `option` may stand alone, which means the first of `choices`; any other word is an argument."""

    class OptionalValueCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, _with_value(args, option, choices))

    return OptionalValueCommand


def _with_value(args: list[str], option: str, choices: Sequence[str]) -> list[str]:
    """Turn `--option` into `--option=first` where none of `choices` follows."""
    return [
        f"{word}={choices[0]}" if word == option and (after not in choices) else word
        for word, after in zip(args, [*args[1:], ""], strict=True)
    ]
