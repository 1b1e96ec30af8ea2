"""Scorers from the command line: `KIND[=VALUE][,SETTING=VALUE]...`, as in `linear=quality.bin,name=edu`."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_tools.scores import kinds
from data_tools.scores.scorer import Scorer, check_name
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.paths import user_path


def kind_names() -> list[str]:
    """The kinds of scorers that there are: the modules of `kinds/`."""
    return sorted(module.name for module in pkgutil.iter_modules(kinds.__path__) if not module.name.startswith("_"))


def parse_scorer(text: str) -> Scorer:
    """Make a scorer of its text form.

    The value after the kind is the class's first field; settings are the other fields, by name. A comma ends a value.

    Raises:
        UserError: the kind or a setting is unknown, a value is wrong, or one is missing.
    """
    head, *rest = text.split(",")
    kind, has_value, value = head.partition("=")
    if kind not in kind_names():
        raise UserError(f"scorer {text!r}: {kind!r} is not a scorer; choose one of {', '.join(kind_names())}")
    cls = importlib.import_module(f"{kinds.__name__}.{kind}").SCORER
    given = dict(_setting(text, item) for item in rest)
    fields = [field.name for field in dataclasses.fields(cls)]
    if has_value:
        given = {fields[0]: value, **given}
    if unknown := [key for key in given if key not in fields]:
        raise UserError(f"scorer {text!r}: unknown setting {unknown[0]!r}; choose from {', '.join(fields)}")
    types = typing.get_type_hints(cls)
    converted = {key: _convert(text, key, item, types[key]) for key, item in given.items()}
    _check_required(text, kind, cls, converted)
    scorer: Scorer = cls(**converted)
    check_name(scorer.name)
    return scorer


def parse_scorers(texts: Sequence[str]) -> list[Scorer]:
    """Make several scorers, whose columns differ.

    Raises:
        UserError: as `parse_scorer`, or two scorers make the same column.
    """
    scorers = [parse_scorer(text) for text in texts]
    makers: dict[str, str] = {}
    for text, scorer in zip(texts, scorers, strict=True):
        for column in scorer.columns:
            if column in makers:
                raise UserError(
                    f"scorers {makers[column]!r} and {text!r} both make the column {column!r}; add ,name=... to one"
                )
            makers[column] = text
    return scorers


def _setting(text: str, item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        raise UserError(f"scorer {text!r}: {item!r} is not SETTING=VALUE (a comma ends a value)")
    return key, value


def _convert(text: str, key: str, value: str, kind: Any) -> Any:
    wanted = next((one for one in typing.get_args(kind) if one is not type(None)), kind)
    try:
        return _CONVERTERS[wanted](value)
    except (ValueError, KeyError) as error:
        raise UserError(f"scorer {text!r}: {key}={value} is not {_WORDS[wanted]}") from error


def _check_required(text: str, kind: str, cls: Any, given: dict[str, Any]) -> None:
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise UserError(f"scorer {text!r}: {field.name} is missing; write {kind}={field.name.upper()}")


def _nonempty(value: str) -> str:
    if not value:
        raise ValueError
    return value


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    str: _nonempty,
    int: int,
    float: float,
    Path: lambda value: user_path(_nonempty(value)),
    bool: lambda value: {"true": True, "false": False}[value],
}
_WORDS = {str: "a name", int: "a whole number", float: "a number", Path: "a path", bool: "true or false"}
