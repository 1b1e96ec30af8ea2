"""Whether the data of lm-eval's tasks are on this machine, where it may not ask the network for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.task_selection import TaskSelection, fields_of, missing_data, task_manager

# Readers of files, which a task names itself.
_FILE_READERS = ("json", "csv", "parquet", "text", "arrow")


def require_data(selections: Iterable[TaskSelection]) -> None:
    """Look for the data of tasks, before a model is loaded, where HF_HUB_OFFLINE=1 keeps the libraries from fetching.

    Raises:
        UserError: some are not there; one line names all of them, and how to fetch them.
    """
    from datasets import config

    if not config.HF_HUB_OFFLINE:
        return
    missing: dict[str, list[str]] = {}
    for selection in selections:
        manager = task_manager(selection)
        for name in selection.names:
            paths = {str(fields["dataset_path"]) for fields in fields_of(name, manager) if fields.get("dataset_path")}
            if absent := [path for path in sorted(paths) if not _is_here(path, config.HF_DATASETS_CACHE)]:
                missing[name] = absent
    if missing:
        named = ", ".join(sorted({path for paths in missing.values() for path in paths}))
        raise UserError(f"{missing_data(list(missing))} ({named})")


def _is_here(path: str, cache: Any) -> bool:
    if path in _FILE_READERS or Path(path).exists():
        return True
    from datasets.load import CachedDatasetModuleFactory

    try:
        CachedDatasetModuleFactory(path, str(cache)).get_module()
    except (FileNotFoundError, AssertionError):
        return False
    return True
