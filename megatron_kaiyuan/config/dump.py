"""YAML that `read_yaml` reads as the same values."""

from __future__ import annotations

import contextlib
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which leaves text such as 1e4 unquoted: a number to recipes, and to YAML 1.2."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    with contextlib.suppress(ValueError):
        float(text.replace("_", ""))
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(values: Any, **style: Any) -> str:
    """Return YAML with the keys in their order; `style` goes to `yaml.dump`."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, **style)


def one_line(value: Any) -> str:
    """Return a value in one line of YAML, with escapes where a character would break the line."""
    readable, escaped = (
        dump_yaml(value, default_flow_style=True, width=2**31, allow_unicode=allowed).removesuffix("...\n").strip()
        for allowed in (True, False)
    )
    return readable if readable.isprintable() else escaped
