"""YAML plus `key=value` overrides into a frozen section; a typo names the field and the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from megatron_kaiyuan.config.schema import RunConfig, Section
from megatron_kaiyuan.errors import UserError, excerpt

# Of those that one message lists.
_MOST_PROBLEMS = 10
SectionType = TypeVar("SectionType", bound=Section)


def load_run(recipe: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a training recipe.

    Args:
        recipe: a YAML file; OmegaConf's `${...}` references and `${oc.env:NAME}` work.
        overrides: `section.field=value`, applied in order; the value is read as YAML.

    Raises:
        UserError: the file, a field or an override is wrong; the message names it.
    """
    return parse(RunConfig, read_yaml(recipe, overrides), source=str(recipe))


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML mapping with overrides applied and references resolved.

    Raises:
        UserError: the file is missing, is not YAML or not a mapping, or an override is malformed.
    """
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: recipe not found") from error
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
        raise UserError(f"{path}: {excerpt(error)}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{path}: must be a mapping of fields, not a {type(plain).__name__}")
    return plain  # type: ignore[return-value]


def parse(section: type[SectionType], values: dict[str, Any], source: str) -> SectionType:
    """Validate `values` as `section`.

    Raises:
        UserError: one line with every wrong field, its place, and the nearest right name for a typo.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        problems = [_describe(section, problem) for problem in found[:_MOST_PROBLEMS]]
        problems += [f"and {len(found) - _MOST_PROBLEMS} more"] if len(found) > _MOST_PROBLEMS else []
        raise UserError(f"{source}: {'; '.join(problems)}") from error


def _apply(content: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write section.field=value")
    try:
        OmegaConf.update(content, key, yaml.safe_load(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"override {override!r}: {error}") from error


def _describe(section: type[BaseModel], problem: Any) -> str:
    place = _cut(".".join(str(part) for part in problem["loc"])) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = list(_section_at(section, problem["loc"][:-1]).model_fields)
        name = str(problem["loc"][-1])
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{place}: unknown field; {hint}"
    if problem["type"] == "missing":
        return f"{place}: required field is missing"
    if problem["type"] == "value_error":
        return f"{place}: {_cut(problem['msg'].removeprefix('Value error, '))}"
    message = problem["msg"]
    return f"{place}: {message[:1].lower()}{message[1:]}, got {_brief(problem['input'])}"


def _section_at(section: type[BaseModel], path: Sequence[Any]) -> type[BaseModel]:
    """The class of the section that a field path leads to, through lists, mappings and alternatives."""
    for part in path:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is not None and (found := _section_in(field.annotation)) is not None:
            section = found
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _section_in(one)) is not None), None)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _cut(message: str) -> str:
    """A message that quotes what somebody wrote, which may be a whole book."""
    return message if len(message) <= 600 else f"{message[:500]} ... {message[-80:]}"
