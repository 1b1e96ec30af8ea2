"""Pages from the templates beside this file: HTML that refers to nothing outside itself."""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill a template; a value that it uses and does not get is an error, and every text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("megatron_kaiyuan.report", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)
