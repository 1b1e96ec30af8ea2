"""`kaiyuan-data quantile`: from scored corpora to windows at target quantiles, a phase each. No text is copied."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.curriculum.build import BuiltPhase, build_phases
from data_tools.curriculum.recipe import load_order
from data_tools.scores.audit_source import CorpusSource
from data_tools.windows.lines import window_lines
from data_tools.windows.measure import MeasuredWindow, WindowedDataset, measure
from data_tools.windows.options import WindowOptions, asked_tokens, find_corpora, windows_identity
from data_tools.windows.order import budget, write_order
from data_tools.windows.portraits import portraits
from data_tools.windows.targets import read_targets
from megatron_kaiyuan.files import atomic_path, write_sealed_json
from megatron_kaiyuan.outputs import Output, claim, recorded_folder, write_record

FORMAT, VERSION = "kaiyuan-windows", 1
WINDOWS, ORDER = "windows.json", "order.yaml"


def cut_windows(
    words: Sequence[str],
    options: WindowOptions,
    output: Path,
    threads: int = 0,
    memory: int | None = None,
    as_json: bool = False,
    force: bool = False,
) -> str:
    """Write a folder with a phase for each window, `order.yaml` and `windows.json`; return what to print.

    Args:
        words: corpora, as PREFIX or NAME=PREFIX.
        output: a new folder, or an earlier one of the same windows.
        threads: 0: every core. They and `memory` (bytes) change the speed, never the result.
        as_json: return windows.json instead of a table.
        force: windows of other corpora or settings may be replaced.

    Raises:
        UserError: a corpus, its score or an option is wrong, or something else lies at `output`.
    """
    asked = asked_tokens(options)
    targets = read_targets(options.tops, options.width, options.windows, options.by)
    corpora = find_corpora(words, options)
    identity = windows_identity(corpora, options, targets)
    place = Output(output, "windows of scores")
    with (
        claim(place, identity, recorded_folder(FORMAT), force=force),
        atomic_path(place.path, replace_folder=True) as new,
    ):
        new.mkdir()
        threads = threads or os.cpu_count() or 1
        datasets = [measure(recipe, prefix, targets, options.seed, threads, memory, new) for recipe, prefix in corpora]
        tokens = budget([window for dataset in datasets for window in dataset.windows], asked, options.repeat)
        write_order(new / ORDER, datasets, tokens, options.seed)
        order = load_order(new / ORDER)
        built = list(build_phases(order.prefixes, order.phases, new, threads, memory))
        found = {
            "format": FORMAT,
            "version": VERSION,
            "identity": identity,
            "by": options.by,
            "seed": options.seed,
            "tokens": tokens,
            "datasets": {dataset.recipe.corpus: _about(dataset, place.path) for dataset in datasets},
            "windows": list(_rows(datasets, built, options, new)),
        }
        write_sealed_json(new / WINDOWS, found)
        write_record(new, FORMAT, identity)
    return json.dumps(found, ensure_ascii=False) if as_json else "\n".join(window_lines(found, output))


def _about(dataset: WindowedDataset, folder: Path) -> dict[str, Any]:
    return {
        "prefix": os.path.relpath(dataset.prefix.resolve(), folder.resolve()),
        "score": dataset.recipe.score,
        "documents": dataset.documents,
        "tokens": dataset.tokens,
        "missing_scores": dataset.missing,
    }


def _rows(
    datasets: Sequence[WindowedDataset], built: Sequence[BuiltPhase], options: WindowOptions, folder: Path
) -> Iterator[dict[str, Any]]:
    """The windows of windows.json, in the order of their phases."""
    phases = iter(built)
    for dataset in datasets:
        names = [folder / window.name for window in dataset.windows]
        seen: list[Any] = [None] * len(names)
        if options.samples is not None:
            source = CorpusSource(dataset.recipe.corpus, dataset.prefix, options.tokenizer)
            seen = portraits(source, str(dataset.recipe.score), names, options.samples)
        for window, portrait in zip(dataset.windows, seen, strict=True):
            yield _row(window, next(phases), portrait)


def _row(window: MeasuredWindow, phase: BuiltPhase, portrait: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": window.name,
        "dataset": window.dataset,
        "asked": [float(bound) for bound in window.target.asked],
        "bounds": list(window.bounds),
        "documents": window.documents,
        "tokens": window.tokens,
        "lowest": _number(window.lowest),
        "highest": _number(window.highest),
        "phase": window.name,
        "phase_documents": phase.documents,
        "phase_tokens": phase.tokens,
        "repeat": max(1.0, phase.tokens / window.tokens),
        "portrait": portrait,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
