"""Pages from templates: HTML that refers to nothing outside itself. All of them extend `layout.html`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from megatron_kaiyuan.files import write_text
from megatron_kaiyuan.outputs import Earlier, Output, claim, identity_of

_HEAD_BYTES = 4096
_MARK = re.compile(r'<meta name="generator" content="([a-z -]+) ([0-9a-f]{32})">')


def write_page(output: Path, page: str, identity: str, generator: str, force: bool) -> None:
    """Write a page, or replace an earlier one of the same `generator` and subject.

    Args:
        page: as `render` made it, with both marks.

    Raises:
        UserError: something else lies there.
    """
    place = page_output(output)
    with claim(place, identity, earlier_page(generator), force=force):
        write_text(place.path, page)


def page_output(output: Path) -> Output:
    return Output(output, "a page that this command wrote", kind="file")


def page_identity(subject: Path, output: Path) -> str:
    """Of what folder a page is: where that lies from the page, so that both may be moved together."""
    return identity_of("page", os.path.relpath(subject.resolve(), output.parent.resolve()))


def earlier_page(generator: str) -> Earlier:
    """Recognises a page by the line in its head, see `outputs.Earlier`."""

    def earlier(output: Output) -> str | None:
        if not output.path.exists():
            return None
        with open(output.path, "rb") as file:
            found = _MARK.search(file.read(_HEAD_BYTES).decode("utf-8", errors="replace"))
        if found is None or found[1] != generator:
            raise output.in_the_way(output.path)
        return found[2]

    return earlier


def render(template: str, package: str, **values: Any) -> str:
    """Fill a template; a value that it uses and does not get is an error, and every text is escaped.

    Args:
        package: the one beside whose modules the template lies.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader(__package__, ".")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**values)
