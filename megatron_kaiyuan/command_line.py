"""What every command of this project shares: one line for a user's mistake, an exit code, no stack trace."""

from __future__ import annotations

import codecs
import errno
import functools
import inspect
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from megatron_kaiyuan import __version__, exit_codes, logs
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.numbers import read_count, read_number
from megatron_kaiyuan.paths import user_paths
from megatron_kaiyuan.streams import lost_output, survive_lost_output
from megatron_kaiyuan.usage import UsageError, describe_usage

log = logging.getLogger(__name__)

Force = Annotated[
    bool, typer.Option("--force", help="replace what this command wrote there earlier from other input; nothing else")
]


Verbose = Annotated[bool, typer.Option("--verbose", help="log more: debug lines, each with time and rank")]
Quiet = Annotated[bool, typer.Option("--quiet", help="log errors only; results are printed all the same")]


class _Group(TyperGroup):
    """Reports a broken pipe, which typer takes for the end of our reader and ends without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise UserError(describe(error)) from error


class App(typer.Typer):
    """An application whose commands get `~` in every path replaced, as `paths.user_path` does, and set up logging.

    Each has two options more, --verbose and --quiet.
    """

    def command(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """As typer's."""
        register = super().command(*args, **options)

        def decorate(function: Any) -> Any:
            @functools.wraps(function)
            def prepared(verbose: bool, quiet: bool, **values: Any) -> None:
                _set_up_logging(verbose, quiet)
                function(**user_paths(values))

            _add_options(prepared, {"verbose": Verbose, "quiet": Quiet})
            register(prepared)
            return function

        return decorate


def _add_options(function: Any, options: Mapping[str, Any]) -> None:
    """Let typer see parameters of a function that it does not declare by name, all of them False by default."""
    declared = inspect.signature(function, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in options.items()
    ]
    function.__signature__ = declared.replace(parameters=[*declared.parameters.values(), *added])
    function.__annotations__ = {**function.__annotations__, **options}


def _set_up_logging(verbose: bool, quiet: bool) -> None:
    if verbose and quiet:
        raise UserError("--verbose and --quiet: give one of them")
    logs.set_up(logs.VERBOSE if verbose else logs.QUIET if quiet else None)


def make_app(help_text: str | None = None, root: bool = False) -> App:
    """A typer application with this project's settings.

    Args:
        root: a command by itself: it has `--version`, and completion for the user's shell.
    """
    # Plain text: boxes of a width that depends on the terminal are hard to read in a job's log.
    app = App(
        cls=_Group,
        help=help_text,
        no_args_is_help=True,
        add_completion=root,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    if root:
        app.callback()(_root)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"megatron_kaiyuan {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it and exit")
    ] = False,
) -> None:
    pass


def run_app(app: typer.Typer, elsewhere: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a command to its end, whoever reads what it prints.

    Exit code 0 on success, 2 on a user's mistake or where standard output could not be written, 141 where its reader
    has gone (as with `| head`), 130 on ctrl-C.

    Args:
        elsewhere: other programs of this project and the modules that hold their `app`, to point to where a command
            is one of theirs.
    """
    try:
        logs.set_up()
    except UserError as error:
        fail(describe(error))
    # Names of processor masks, clocks and /proc are Linux's own, in all rooms.
    if sys.platform != "linux":
        fail(f"this project runs on Linux only, and this is {sys.platform}")
    _require_utf8()
    survive_lost_output()
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding cannot show does not end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        if code:
            sys.exit(code)
        _exit_for_lost_output()
    except UsageError as error:
        if error.format_message().count("\n"):  # help, where nothing was asked
            error.show()
            sys.exit(error.exit_code)
        fail(describe_usage(error, elsewhere))
    except (UserError, OSError) as error:
        fail(describe(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(exit_codes.of_signal(signal.SIGINT))


def _require_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: names of files would not be what they
    are, and texts would be read as something else. Python does so by itself only for the locale C.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _exit_for_lost_output() -> None:
    error = lost_output()
    if error is None:
        return
    if error.errno == errno.EPIPE:
        # The shell's code for the signal that ends other programs then.
        sys.exit(141)
    fail(f"standard output: {error.strerror}; the command itself has ended well")


def fail(message: str) -> None:
    """Print one line to standard error and exit with 2."""
    log.error(message)
    sys.exit(exit_codes.MISTAKE)


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


def count_option(text: str | int) -> int:
    """For `typer.Option(parser=...)`: a number of tokens, documents, characters or rows, as recipes read it."""
    try:
        return text if isinstance(text, int) else read_count(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def positive_count_option(text: str | int) -> int:
    """For `typer.Option(parser=...)`: likewise, at least 1."""
    if number := count_option(text):
        return number
    raise typer.BadParameter("write a number from 1 on")


def amount_option(text: str | float) -> float:
    """For `typer.Option(parser=...)`: likewise, and not only whole numbers."""
    try:
        return float(read_number(text)) if isinstance(text, str) else float(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def size_option(text: str | int) -> int:
    """For `typer.Option(parser=...)`: a size or a length, of which 4k may mean 4,000 or 4,096."""
    try:
        return text if isinstance(text, int) else read_count(text, units=False)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def bytes_option(text: str | int) -> int:
    """For `typer.Option(parser=...)`: bytes, as transformers writes them: 500MB, 5GB."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])B", text.strip(), re.IGNORECASE)
    if match is None or not (found := int(float(match[1]) * 1000 ** (1 + "KMGT".index(match[2].upper())))):
        raise typer.BadParameter(f"write a size as 500MB or 5GB, not {text!r}")
    return found
