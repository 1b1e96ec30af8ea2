"""What files that are read back must look like: types, bounds and lengths of their fields, checked before use.

A seal finds damage, not a file that another program wrote, or an editor. A reader says its form once, and what passes
it can be used without further care: no field is missing, a count is a number that fits 63 bits, a name stays in its
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from megatron_kaiyuan.errors import UserError, excerpt


class Form(BaseModel):
    """The fields of a JSON object that a reader needs; others are let through.

    Strict: a count that is a text or a boolean is damage, and so is a number that is not finite.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


FormType = TypeVar("FormType", bound=Form)


def _without_zero(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a zero byte")
    return text


def _inside(name: str) -> str:
    if not name or name.startswith("/") or ".." in PurePosixPath(name).parts or PurePosixPath(name) == PurePosixPath():
        raise ValueError("does not lie inside the folder")
    return name


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[float, Field(ge=0, le=1)]
Checksum = Annotated[str, Field(pattern=r"^xxh3:[0-9a-f]{32}$")]
# Of any place on this machine.
PathText = Annotated[str, Field(min_length=1, max_length=4095), AfterValidator(_without_zero)]
# Of a file below the folder in which it is named.
FileName = Annotated[PathText, AfterValidator(_inside)]


class FileEntry(Form):
    """Size and checksum of a file."""

    bytes: Count
    checksum: Checksum


Files = dict[FileName, FileEntry]


class Recorded(Form):
    """What every sealed record of a product says: its files, and what it was made from."""

    identity: str = ""
    files: Files


def require_form(path: Path, content: Any, form: type[FormType], remedy: str = "make it again") -> FormType:
    """Compare what was read from a file with its form.

    Args:
        remedy: the end of the message.

    Returns:
        The fields.

    Raises:
        UserError: naming the file, the first field that is wrong, and what is wrong with it.
    """
    try:
        return form.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    except RecursionError:
        first = {"loc": (), "msg": "brackets in brackets without end", "type": ""}  # type: ignore[typeddict-item]
    raise UserError(f"{path}: a field is missing or wrong ({_words(first['loc'], first['msg'])}); {remedy}")


def _words(place: Sequence[Any], message: str) -> str:
    return excerpt(f"{'.'.join(map(str, place)) or 'the whole'}: {message[:1].lower()}{message[1:]}")
