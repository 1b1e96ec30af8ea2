"""Windows of `kaiyuan-data quantile`, and a part of each for every seed: phases of different documents, no text copied.

The seeds of a window must not share documents: which ones a window happens to hold would then be no noise that the
seeds show, and windows that do not differ would be told apart. Part k of S is the k-th of S equal slices of the window
by score. Slices are so narrow that their quality is the window's; what is left of a slope within all windows is common
to the runs of a seed, and falls out of their differences.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.keep import Keep
from data_tools.curriculum.recipe import OrderRecipe, PhaseRecipe, load_order
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_sealed_json
from megatron_kaiyuan.forms import Count, FileName, Form, Share, require_form
from megatron_kaiyuan.research.probes.window import Window

_FORMAT, _VERSION = "kaiyuan-windows", 1
_ORDER = "order.yaml"


class _Entry(Form):
    name: FileName
    dataset: str
    asked: Annotated[list[Share], Field(min_length=2, max_length=2)]
    phase: FileName
    phase_tokens: Annotated[Count, Field(ge=1)]
    portrait: dict[str, Any] | None


class _Listed(Form):
    windows: list[_Entry]


def read_windows(listed: Path) -> list[Window]:
    """The windows of a `windows.json`; each has one part, the whole of it.

    Raises:
        UserError: the file is missing, damaged or something else.
    """
    content = read_sealed_json(listed, "list of windows")
    if content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise UserError(f"{listed}: is not a list of windows; name the windows.json that kaiyuan-data quantile wrote")
    found = require_form(listed, content, _Listed, "cut the windows again")
    return [_window(listed, entry) for entry in found.windows]


def split(window: Window, seeds: int, folder: Path) -> Window:
    """The window with a part for each seed, which `build` has still to make.

    Args:
        folder: that gets the phases.
    """
    places = tuple(folder / f"{window.name}_{seed + 1}" for seed in range(seeds))
    return replace(window, parts=places, part_tokens=window.part_tokens // seeds)


def build(windows: Sequence[Window], force: bool = False) -> None:
    """Write the phases of windows that were split.

    Args:
        force: phases of other windows may be replaced.

    Raises:
        UserError: a corpus has changed, or something else lies at a phase's place.
    """
    orders: dict[Path, OrderRecipe] = {}
    for window in windows:
        if window.listed is None:
            continue
        path = window.listed.parent / _ORDER
        order = orders.get(path) or orders.setdefault(path, load_order(path))
        whole = next((phase for phase in order.phases if phase.name == window.name), None)
        if whole is None:
            raise UserError(f"{path}: has no phase {window.name!r}, which {window.listed} lists; cut the windows again")
        for number, place in enumerate(window.parts):
            phase = _part(whole, number, len(window.parts), place.name)
            build_phase(phase, order.prefixes, place, os.cpu_count() or 1, force=force)


def _window(listed: Path, entry: _Entry) -> Window:
    return Window(
        name=entry.name,
        dataset=entry.dataset,
        quantile=entry.asked[0],
        parts=(listed.parent / entry.phase,),
        part_tokens=entry.phase_tokens,
        portrait=entry.portrait or {},
        listed=listed,
    )


def _part(whole: PhaseRecipe, number: int, parts: int, name: str) -> PhaseRecipe:
    (dataset,) = whole.datasets
    kept: Keep = dataset.kept
    width = (kept.fraction - kept.skip) / parts
    bounds = f"{kept.skip + number * width}-{kept.skip + (number + 1) * width}"
    sliced = dataset.model_copy(update={"keep": f"window {bounds}{' of tokens' if kept.by_tokens else ''}"})
    return whole.model_copy(update={"name": name, "tokens": "all", "datasets": [sliced]})
