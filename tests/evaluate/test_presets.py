from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.presets import PRESETS, preset_selections
from megatron_kaiyuan.evaluate.task_selection import TaskSelection, fields_of, load_tasks, missing_data, task_manager

NAMES = [name for tasks in PRESETS.values() for name in tasks]


@pytest.mark.slow
def test_every_task_of_a_preset_is_one_of_lm_eval_with_data_of_the_hub() -> None:
    manager = task_manager(TaskSelection(tuple(NAMES)))
    for preset, tasks in PRESETS.items():
        for name in tasks:
            fields = list(fields_of(name, manager))
            assert fields and all(one["dataset_path"].count("/") == 1 for one in fields), name
            # A number of examples that the task fixes is the one that the table states.
            assert {one.get("num_fewshot") for one in fields} <= {None, tasks[name]}, name
            assert any(one.get("unsafe_code", False) for one in fields) == (preset == "code"), name


def test_the_page_states_the_same_tasks_and_shots() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "after_training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    pairs = {name: re.findall(r"([\w-]+) (\d+)\b(?=[,\s]|$)", re.sub(r"\(.*?\)", "", text)) for name, text in rows}
    stated = {name: {task: int(number) for task, number in found} for name, found in pairs.items() if name in PRESETS}
    assert stated == PRESETS


def test_tasks_of_equal_shots_are_one_selection() -> None:
    found = list(preset_selections(["math", "english", "math"], limit=3))
    shots = {name: one.num_fewshot for one in found for name in one.names}
    assert shots == {**PRESETS["math"], **PRESETS["english"]}
    assert len({one.num_fewshot for one in found}) == len(found) and all(one.limit == 3 for one in found)
    with pytest.raises(UserError, match="--preset maths: is not one of english, chinese, math, code"):
        list(preset_selections(["maths"]))


def test_offline_one_line_names_all_data_that_are_missing_and_how_to_fetch_them(tmp_path: Path) -> None:
    """In a process of its own: Hugging Face's libraries read the environment once."""
    cached = {"dataset_path": "someone/HasIt", "output_type": "multiple_choice"}
    for name, fields in {"here": cached, "gone": {**cached, "dataset_path": "someone/has_not"}}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **fields}))
    (tmp_path / "home" / "datasets" / "someone___has_it" / "default" / "0.0.0" / "abc").mkdir(parents=True)
    program = (
        "import sys; from pathlib import Path\n"
        "from megatron_kaiyuan.errors import UserError\n"
        "from megatron_kaiyuan.evaluate.data_at_hand import require_data\n"
        "from megatron_kaiyuan.evaluate.task_selection import TaskSelection\n"
        "for names in (('here',), ('here', 'gone')):\n"
        "    try: print(require_data([TaskSelection(names, Path(sys.argv[1]))]))\n"
        "    except UserError as error: print(error)\n"
    )
    outputs = {}
    for offline in ("0", "1"):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
        environment |= {"HF_HUB_OFFLINE": offline, "HF_DATASETS_OFFLINE": offline}
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path], env=environment, capture_output=True, text=True, check=True
        )
        outputs[offline] = done.stdout.splitlines()
    # Where there is a network, the libraries fetch them.
    assert outputs["0"] == ["None", "None"]
    assert outputs["1"] == ["None", f"{missing_data(['gone'])} (someone/has_not)"]
    assert "TaskManager().load(['gone'])" in outputs["1"][1] and json.dumps(outputs["1"][1]).count("\\n") == 0


def test_without_a_network_the_line_is_the_same() -> None:
    """After the repetitions of the libraries, which take half a minute for each data set."""

    def load(names: list[str]) -> None:
        raise ConnectionError("Couldn't reach 'someone/has_it' on the Hub (LocalEntryNotFoundError)")

    manager: Any = SimpleNamespace(task_index={"one": None}, load=load)
    with pytest.raises(UserError) as error:
        load_tasks(TaskSelection(("one",)), manager)
    assert str(error.value).startswith(missing_data(["one"])) and "Couldn't reach 'someone/has_it'" in str(error.value)
