"""One page about scores: how they separate domains, and what each of their quantiles holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.outputs import check, identity_of
from megatron_kaiyuan.pages.page import earlier_page, page_output, render, write_page

GENERATOR = "kaiyuan-data audit"


def check_audit_page(subjects: Sequence[str], output: Path, force: bool = False) -> str:
    """Refuse a place that holds something else, before the work.

    Returns:
        The identity of the page.

    Raises:
        UserError: something else lies at `output`.
    """
    places = [os.path.relpath(os.path.realpath(subject), output.parent.resolve()) for subject in subjects]
    identity = identity_of("audit page", places)
    check(page_output(output), identity, earlier_page(GENERATOR), force)
    return identity


def build_audit_page(found: dict[str, Any], subjects: Sequence[str], output: Path, force: bool = False) -> None:
    """Write the page; it refers to nothing outside itself.

    Args:
        found: figures of `kaiyuan-data audit`, as its JSON has them.
        subjects: the corpora or documents, for the heading and to know the page again.

    Raises:
        UserError: something else lies at `output`.
    """
    identity = check_audit_page(subjects, output, force)
    names = [Path(subject).name for subject in subjects]
    heading = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    page = render("audit.html", __package__, name=heading, found=found, generator=GENERATOR, identity=identity)
    write_page(output, page, identity, GENERATOR, force)
