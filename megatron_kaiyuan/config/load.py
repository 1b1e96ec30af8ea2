"""YAML plus `key=value` overrides into a frozen section; a typo names the field and the nearest right one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from megatron_kaiyuan.config.hints import nearest_choice, unknown_field
from megatron_kaiyuan.config.kinds import another_kind
from megatron_kaiyuan.config.schema import RunConfig
from megatron_kaiyuan.config.section import Section
from megatron_kaiyuan.errors import UserError, excerpt

# More than an order recipe of as many datasets as a phase can have. The library's own limit is against aliases of
# aliases, and stops at 10,000.
_MOST_NODES = 2_000_000
# Of those that one message lists.
_MOST_PROBLEMS, _MOST_CHARACTERS = 10, 600
SectionType = TypeVar("SectionType", bound=Section)


def load_run(recipe: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a training recipe.

    Args:
        recipe: a YAML file; OmegaConf's `${...}` references and `${oc.env:NAME}` work.
        overrides: `section.field=value`, applied in order; the value is read as in the file.

    Raises:
        UserError: the file, a field or an override is wrong; the message names it.
    """
    return parse(RunConfig, read_yaml(recipe, overrides), source=str(recipe))


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML mapping with overrides applied and references resolved.

    Raises:
        UserError: the file is missing, is not YAML or not a mapping, or an override is malformed.
    """
    if path.is_fifo() and path.parts[1:2] not in (("dev",), ("proc",)):
        # Opening one waits for a writer; those of `<(command)` have one.
        raise UserError(f"{path}: is a pipe; a recipe is read more than once, so write it to a file")
    try:
        content = OmegaConf.load(path, max_yaml_expanded_nodes=_MOST_NODES)
    except FileNotFoundError as error:
        raise UserError(_no_recipe(path)) from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; name the YAML file in it") from error
    except OSError as error:
        # OmegaConf's own, without a number, for a file that is one number or one word.
        why = error.strerror or f"must be a mapping of fields ({excerpt(error)})"
        raise UserError(f"{path}: {why}") from error
    # Brackets without end, an anchor that refers to itself, keys that are lists: each has an error of another class.
    except Exception as error:
        raise UserError(f"{path}: not valid YAML: {excerpt(str(error) or type(error).__name__)}") from error
    for override in overrides:
        _apply(content, override)
    try:
        plain = OmegaConf.to_container(content, resolve=True)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        raise UserError(f"{path}: {_unresolved(error)}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{path}: must be a mapping of fields, not a {type(plain).__name__}")
    return plain  # type: ignore[return-value]


def parse(section: type[SectionType], values: dict[str, Any], source: str) -> SectionType:
    """Validate `values` as `section`.

    Raises:
        UserError: one line with every wrong field, its place, and the nearest right name for a typo; or what the file
            is, where it is a recipe of another kind.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        if kind := another_kind(section.__name__, values, source):
            raise UserError(f"{source}: {kind}") from error
        found = _without_consequences(error.errors())
        problems = _shown([_describe(section, problem) for problem in found])
        raise UserError(f"{source}: {'; '.join(problems)}") from error


def _shown(problems: list[str]) -> list[str]:
    """The first problems, as many as a reader takes in, and how many more there are."""
    shown, room = problems[:1], _MOST_CHARACTERS - len(problems[0])
    for problem in problems[1:_MOST_PROBLEMS]:
        room -= len(problem)
        if room < 0:
            break
        shown.append(problem)
    more = len(problems) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _no_recipe(path: Path) -> str:
    if re.match(r"[\w.\[\]]+=", str(path)):
        return f"{path}: is a field to change, not a recipe; name the recipe first, then what is changed in it"
    return f"{path}: recipe not found"


def _apply(content: Any, override: str) -> None:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write section.field=value, without blanks around '='")
    try:
        # Reads the value with the loader of the recipe itself: 1e4 and 1_000 mean the same in both.
        content.merge_with_dotlist([override])
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        # OmegaConf's own message has full_key and object_type in further lines.
        what = str(error).partition("\n")[0]
        counted = "; entries are counted from 0" if "out of range" in what else ""
        raise UserError(f"override {override!r}: {what}{counted}") from error


def _unresolved(error: Exception) -> str:
    """What is wrong with a reference; OmegaConf's own message has full_key and object_type in further lines."""
    what = str(error).partition("\n")[0].removeprefix("KeyError raised while resolving interpolation: ").strip('"')
    place = getattr(error, "full_key", None)
    hint = (
        "; ${NAME} refers to a field of the recipe: write $NAME for a shell's variable, ${oc.env:NAME} for one that "
        "the recipe reads"
        if isinstance(error, InterpolationKeyError)
        else ""
    )
    return f"{f'{place}: ' if place else ''}{excerpt(what)}{hint}"


def _without_consequences(problems: list[Any]) -> list[Any]:
    """Without the fields of the network that are missing only because its preset is not known."""
    if all(problem["loc"] != ("model", "preset") for problem in problems):
        return problems
    return [problem for problem in problems if problem["type"] != "missing" or problem["loc"][0] != "model"]


def _describe(section: type[BaseModel], problem: Any) -> str:
    # pydantic's mark of a mistake in a name of a mapping, not in the name's value.
    place = _cut(".".join(str(part) for part in problem["loc"] if part != "[key]")) or "recipe"
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{place}: unknown field; {unknown_field(section, problem['loc'])}"
    if kind == "missing":
        return f"{place}: required field is missing"
    if kind == "value_error":
        return f"{place}: {_cut(problem['msg'].removeprefix('Value error, '))}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{place}: write its fields below it, each in a line of its own, not {_brief(problem['input'])}"
    if kind == "list_type":
        return f"{place}: write a list, each entry with a dash before it or all in [], not {_brief(problem['input'])}"
    if kind == "dict_type":
        return f"{place}: write its names below it, each with a value, not {_brief(problem['input'])}"
    if kind == "path_type":
        return f"{place}: write a path, not {_brief(problem['input'])}"
    message = problem["msg"]
    hint = nearest_choice(problem["input"], _choices(problem)) if kind == "literal_error" else ""
    return f"{place}: {message[:1].lower()}{message[1:]}, got {_brief(problem['input'])}{hint}"


def _choices(problem: Any) -> list[str]:
    return re.findall("'([^']*)'", problem["ctx"]["expected"])


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _cut(message: str) -> str:
    """A message that quotes what somebody wrote, which may be a whole book."""
    return message if len(message) <= 600 else f"{message[:500]} ... {message[-80:]}"
