"""The base of every section of a recipe: what all fields have in common."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.numbers import is_counted, read_count
from megatron_kaiyuan.paths import user_paths


class Section(BaseModel):
    """Base of every section: unknown fields are refused, and nothing changes after loading.

    Every field reads whole numbers as people write them (`numbers.py`), below 2^63, and `~` in paths (`paths.py`). No
    number is infinite: where nothing is to be bounded, a field takes null or 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_number(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        annotation = cls.model_fields[name].annotation
        kinds = {*(get_args(annotation) or (annotation,))} - {NoneType}
        if isinstance(value, bool) and kinds <= {int, float}:
            raise ValueError(f"write a number, not {str(value).lower()}")
        if get_origin(annotation) is dict and isinstance(value, dict) and _plain(get_args(annotation)[1]) is float:
            for key, one in value.items():
                if isinstance(one, bool):
                    raise ValueError(f"{key}: write a number, not {str(one).lower()}")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError("must stay below 2^63")
        return read_count(value, units=is_counted(name)) if isinstance(value, str) and kinds == {int} else value

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        try:
            return user_paths(value)
        except UserError as error:
            raise ValueError(str(error)) from error


def _plain(annotation: Any) -> Any:
    """Return the type in an `Annotated`, else the type itself."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
