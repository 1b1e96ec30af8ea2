"""A mistake on the command line in one line that says what to write."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import typer

# typer brings click's errors along under names of its own, which differ between its versions.
UsageError: Any = typer.BadParameter.__base__
# The command line that a command's help shows: a paragraph of its own.
_EXAMPLE = re.compile(r"Example: (.*?)(?:\n\s*\n|$)", re.DOTALL)
# Commands that change fields of a training recipe.
_OF_TRAINING = ("train", "plan", "show")


def describe_usage(error: Any, elsewhere: Mapping[str, str]) -> str:
    """What is wrong, on which command, and where to look.

    Args:
        error: a `UsageError`.
        elsewhere: see `command_line.run_app`.
    """
    command = error.ctx.command_path if error.ctx else "command"
    parameters = error.ctx.command.params if error.ctx else []
    if type(error).__name__ == "NoSuchOption" and any(parameter.name == "overrides" for parameter in parameters):
        field = _field(error.option_name, error.ctx.info_name)
        if field or not error.possibilities:
            return f"{command}: {_field_not_option(error.option_name, field)}"
    if type(error).__name__ == "MissingParameter" and error.param is not None:
        return f"{command}: {_missing(error.param, error.ctx)}; see {command} --help"
    # Older versions of typer name a variable of the environment where there is none.
    message = error.format_message().replace(" (env var: 'None')", "").rstrip(".")
    if type(error).__name__ in ("UsageError", "NoSuchCommand") and "No such command" in message:
        message = _other_program(message, elsewhere)
    return f"{command}: {message[:1].lower()}{message[1:]}; see {command} --help"


def _missing(first: Any, context: Any) -> str:
    """What has to be given: the parameter that was found missing, and the required options that are missing as well."""
    missing = [first]
    for parameter in context.command.params:
        is_given = any(word.partition("=")[0] in parameter.opts for word in sys.argv)
        if parameter.required and parameter is not first and parameter.opts[0].startswith("-") and not is_given:
            missing.append(parameter)
    missing.sort(key=context.command.params.index)
    what = " and ".join(f"{_shown(one)} ({one.help})" if getattr(one, "help", None) else _shown(one) for one in missing)
    example = _EXAMPLE.search(context.command.help or "")
    return f"missing {what}" + (f"; as in: {' '.join(example[1].split())}" if example else "")


def _shown(parameter: Any) -> str:
    return parameter.opts[0] if parameter.opts[0].startswith("-") else f"argument {parameter.name!r}"


def _field(option: str, command: str) -> str | None:
    """The field of a training recipe that an option was meant to be."""
    from megatron_kaiyuan.config import RunConfig
    from megatron_kaiyuan.config.hints import field_named

    return field_named(RunConfig, option.lstrip("-")) if command in _OF_TRAINING else None


def _field_not_option(option: str, field: str | None) -> str:
    """Fields of recipes are written as Hydra's and OmegaConf's, not as Megatron's options."""
    field = field or option.lstrip("-").replace("-", "_")
    return (
        f"{option} is not an option; a field of the recipe is changed by a word after it, without dashes: "
        f"{field}={_value_of(option)}"
    )


def _value_of(option: str) -> str:
    """What was given to an unknown option."""
    for word, after in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and after and not after.startswith("-"):
            return after
    return "true" if option in sys.argv else "VALUE"


def _other_program(message: str, elsewhere: Mapping[str, str]) -> str:
    for program, module in elsewhere.items():
        commands = typer.main.get_command(importlib.import_module(module).app).commands  # type: ignore[attr-defined]
        for name in commands:
            if f"'{name}'" in message:
                return f"{message}: it is one of {program}'s, as {program} {name}"
    return message
