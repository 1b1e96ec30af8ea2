"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import os
import re
import shlex
from typing import Any

from megatron_kaiyuan.redaction import redact


class UserError(Exception):
    """Bad input: the message names the file or field and says what to do.

    The command line prints it as one line and exits with 2; no stack trace is shown, and no credential.

    Attributes:
        every_rank: every rank of the job holds this same error, so that rank 0 alone prints it.
            An error that one rank found by itself is printed by that rank.
    """

    def __init__(self, message: str, *, every_rank: bool = False):
        super().__init__(redact(" ".join(message.split())))
        self.every_rank = every_rank


# How every error about a path that is not there begins.
_ABSENT = re.compile(
    r"(?P<path>[^:]+): ([\w -]*\b(not found|is not there)|([\w ]+\()?No such file or directory\)?)(?! \(relative)"
)


def describe(error: UserError | OSError) -> str:
    """One line about a mistake of the user's, or about a file that the system refuses (full disk, no permission).

    Where it is about a relative path that is not there, with the folder that the path is relative to.
    """
    if isinstance(error, UserError):
        message = str(error)
    else:
        reason = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
        advice = system_advice(error, "")
        message = redact(f"{reason}; {advice}" if advice else reason)
    absent = _ABSENT.match(message)
    if absent is None or os.path.isabs(absent["path"]) or os.path.lexists(absent["path"]):
        return message
    return f"{absent[0]} (relative to {os.getcwd()}){message[absent.end() :]}"


def system_advice(error: OSError, otherwise: str = "check the path and its permissions") -> str:
    """What to do where the system refuses a file; it may have nothing to do with the file."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files, as with `ulimit -n 65536`, or take fewer at once"
    return otherwise


def require_between(option: str, value: float, least: float, most: float) -> None:
    """Refuse a number outside of `least` to `most`, and NaN.

    Raises:
        UserError: naming the option and both ends.
    """
    if not least <= value <= most:
        raise UserError(f"{option} {value}: must be between {least:,} and {most:,}")


def excerpt(error: object, most: int = 160) -> str:
    """A library's message in one line of at most `most` characters: it may quote a whole line of a file."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[: most * 11 // 16]} ... {text[-most // 4 :]}"


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional `module`, or say which extra of this project brings it.

    Raises:
        UserError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package {module!r}, which cannot be imported ({error}): {install_command(extra)}"
        ) from error


def install_command(extra: str) -> str:
    """What installs the packages of an extra of this project, in a checkout or beside an installed wheel.

    The packages are named themselves: an index may hold a stranger's package under this project's name.
    """
    marker = f'extra == "{extra}"'
    try:
        lines = [line.partition(";") for line in importlib.metadata.requires("megatron-kaiyuan") or []]
    except importlib.metadata.PackageNotFoundError:
        lines = []
    packages = [shlex.quote(package.strip()) for package, _, condition in lines if condition.strip() == marker]
    return f"pip install {' '.join(packages)}" if packages else f"pip install -e '.[{extra}]' in the project's folder"
