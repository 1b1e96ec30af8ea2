"""What every command of this project shares: one line for a user's mistake, an exit code, no stack trace."""

from __future__ import annotations

import sys

import typer

from megatron_kaiyuan.errors import UserError


def make_app(help_text: str) -> typer.Typer:
    """A typer application with this project's settings."""
    return typer.Typer(help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def run_app(app: typer.Typer) -> None:
    """Run a command: exit 0 on success, 2 on a user's mistake, 130 on ctrl-C."""
    try:
        app()
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def fail(message: str) -> None:
    """Print one line to standard error and exit with 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
