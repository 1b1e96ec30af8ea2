"""The file of results: one entry for each model or step, to which tasks are added; nothing measured is lost unasked.

The entry of the newest step stands at the top of the file, where `kaiyuan report` reads it, the others under `others`.
What a result was made from is recorded for each measure, so that one is replaced only by the same one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Form, require_form

FORMAT = "kaiyuan-evaluation"
HELD_OUT = "held_out"
# An entry, as results that were written before there were several have it too.
Entry = dict[str, Any]


class _Measured(Form):
    path: str
    name: str
    held_out: dict[str, Any] | None
    tasks: dict[str, dict[str, float | str | None]]
    shots: dict[str, int] = {}
    calibration: dict[str, dict[str, Any]] = {}
    seconds: float = 0.0


class _Entry(Form):
    model: _Measured
    baseline: _Measured | None
    items: dict[str, int] = {}
    made_from: dict[str, str] = {}


class _Results(_Entry):
    others: list[_Entry] = []


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a file; an empty list where it does not exist.

    Raises:
        UserError: it is damaged, or an entry is not a result.
    """
    if not path.exists():
        return []
    content = read_json(path, "evaluation")
    require_form(path, content, _Results, "name another --output")
    others = content.pop("others", [])
    content.pop("format", None)
    return [content, *others]


def replaced(entries: list[Entry], new: Mapping[str, Any]) -> list[str]:
    """The measures that an entry would put in the place of others: of other weights, data or settings.

    Args:
        new: `model` with the path, and `made_from` of all that is to be measured.
    """
    old = _of_model(entries, new)
    if old is None:
        return []
    there = old.get("made_from", {})
    measured = [*([HELD_OUT] if old["model"][HELD_OUT] else []), *old["model"]["tasks"]]
    # Other weights in the same place make all results of the old ones wrong.
    weights = there.get("model")
    if weights != new["made_from"]["model"] and weights is not None:
        return measured
    names = [*measured, *(["baseline"] if old["baseline"] else [])]
    return [name for name in names if name in new["made_from"] and there.get(name) != new["made_from"][name]]


def refuse_replaced(path: Path, entries: list[Entry], new: Mapping[str, Any]) -> None:
    """Refuse to lose a result.

    Raises:
        UserError: naming what would be replaced.
    """
    if names := replaced(entries, new):
        raise UserError(
            f"{path}: has {', '.join(names)} of {new['model']['name']} already, measured on other data or with other "
            "settings or weights; name another --output, or replace it with --force"
        )


def with_entry(entries: list[Entry], new: Entry) -> dict[str, Any]:
    """The content of the file with an entry added to the one of its model, or as a further one."""
    old = _of_model(entries, new)
    others = [entry for entry in entries if entry is not old]
    # Results of earlier versions do not say of which weights they are.
    same_weights = old is not None and old.get("made_from", {}).get("model") in (None, new["made_from"]["model"])
    entry = _joined(old, new) if old is not None and same_weights else new
    found = sorted([*others, entry], key=lambda one: (_step(one), one is entry), reverse=True)
    return {"format": FORMAT, **found[0], "others": found[1:]}


def _joined(old: Entry, new: Entry) -> Entry:
    made_from = {**old.get("made_from", {}), **new["made_from"]}
    same_baseline = old.get("made_from", {}).get("baseline") == new["made_from"].get("baseline")
    baseline = new["baseline"] or old["baseline"]
    if new["baseline"] and old["baseline"] and same_baseline:
        baseline = _both(old["baseline"], new["baseline"])
    return {
        **old,
        **new,
        "model": _both(old["model"], new["model"]),
        "baseline": baseline,
        "items": {**old.get("items", {}), **new["items"]},
        "made_from": made_from,
    }


def _both(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {
        **new,
        HELD_OUT: new[HELD_OUT] or old[HELD_OUT],
        "tasks": {**old["tasks"], **new["tasks"]},
        **{name: {**old.get(name, {}), **new.get(name, {})} for name in ("shots", "calibration")},
        "seconds": round(old.get("seconds", 0) + new["seconds"], 2),
    }


def _of_model(entries: list[Entry], new: Mapping[str, Any]) -> Entry | None:
    weights, path = new["made_from"]["model"], os.path.abspath(new["model"]["path"])
    by_weights = (entry for entry in entries if entry.get("made_from", {}).get("model") == weights)
    by_path = (entry for entry in entries if os.path.abspath(entry["model"]["path"]) == path)
    return next(by_weights, None) or next(by_path, None)


def _step(entry: Entry) -> int:
    """The step of a checkpoint; 0 for other models, which are shown only where nothing else is."""
    found = re.fullmatch(r".*, step (\d+)", entry["model"]["name"])
    return int(found[1]) if found else 0
