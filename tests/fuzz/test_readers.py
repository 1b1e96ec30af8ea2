"""Every call that turns bytes from outside into objects is reached by a target, or stands here with its reason."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers.files.readers import READERS, sources

# Besides the readers of docs/security.md: JSON is read through these two in most places.
_CALLS = {**READERS, "read_json": r"(?<!def )\bread_(sealed_)?json\("}
_RANKS = "a message between the ranks of one job, who are trusted (docs/security.md, Ports of a job)"
_CHILD = "a file or line that a process of the same command wrote a moment before, in a folder of its own"
_WORK = "a work file of a run that was stopped: its record is sealed and holds its size; its content is not fuzzed yet"
_EXCUSED = {
    ("megatron_kaiyuan/checkpoint/plain.py", "pickle.Unpickler"): "the class; checkpoint-metadata calls it",
    ("megatron_kaiyuan/cluster/start_check.py", "json"): _RANKS,
    ("megatron_kaiyuan/cluster/search.py", "json"): _RANKS,
    ("megatron_kaiyuan/cluster/verdict.py", "json"): _RANKS,
    ("megatron_kaiyuan/doctor/quick.py", "json"): _RANKS,
    ("megatron_kaiyuan/doctor/together.py", "json"): _RANKS,
    ("megatron_kaiyuan/monitor/notifier.py", "json"): _CHILD,
    ("megatron_kaiyuan/config/load.py", "OmegaConf"): "an override of the command line; recipe-train reads as it does",
    ("megatron_kaiyuan/doctor/acceptance/largest.py", "read_json"): _CHILD,
    ("megatron_kaiyuan/doctor/acceptance/one.py", "read_json"): _CHILD,
    ("megatron_kaiyuan/doctor/acceptance/processes.py", "read_json"): _CHILD,
    ("megatron_kaiyuan/doctor/trial_process.py", "read_json"): _CHILD,
    ("megatron_kaiyuan/export/older_names.py", "read_json"): _CHILD,
    ("megatron_kaiyuan/export/tokenizer.py", "read_json"): "a file that transformers has read a moment before",
    ("megatron_kaiyuan/platform/npu_trial.py", "json"): _CHILD,
    ("megatron_kaiyuan/research/queue/run_all.py", "json"): _CHILD,
    ("data_tools/tokenizers/train_tokenizer.py", "json"): "a text of the library itself",
    ("data_tools/curriculum/packing.py", "np.fromfile"): _CHILD,
    ("data_tools/dedup/arrays.py", "np.memmap"): _WORK,
    ("data_tools/dedup/arrays.py", "np.fromfile"): _WORK,
    ("data_tools/scores/documents.py", "pyarrow.parquet"): _WORK,
    ("data_tools/steps/schemas.py", "pyarrow.parquet"): _WORK,
}


@pytest.mark.timeout(600)
def test_every_reader_is_fuzzed_or_excused(outcomes: dict[str, Any]) -> None:
    reached = {line for outcome in outcomes.values() for line in outcome["reached"]}
    found = {
        (file, reader, text.count("\n", 0, match.start()) + 1)
        for file, text in sources().items()
        for reader, pattern in _CALLS.items()
        for match in re.finditer(pattern, text)
    }
    left = {(file, reader): line for file, reader, line in found if f"{file}:{line}" not in reached}
    assert left.keys() - _EXCUSED.keys() == set(), "no target reads these"
    assert _EXCUSED.keys() - left.keys() == set(), "these are read by a target, and need no excuse"
