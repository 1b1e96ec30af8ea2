"""Probes and mixtures that measure tasks of lm-eval beside held-out text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.cloze import ClozeTask, Item, write_task
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.research.mixture.recipe import MixRecipe
from megatron_kaiyuan.research.probes.answer import make_answer
from megatron_kaiyuan.research.probes.command import plan, probe
from megatron_kaiyuan.research.probes.design import Design, make_design, split_for_seeds
from megatron_kaiyuan.research.probes.pages import answer_page, plan_text, verdict_lines
from megatron_kaiyuan.research.probes.request import read_request
from tests.helpers.training.local_tasks import write_tasks
from tests.helpers.training.small_probe import write_probe
from tests.helpers.training.tiny_model import write_tokenizer


@pytest.fixture(scope="module")
def task_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe_tasks")
    write_tokenizer(folder / "tokenizer")
    tasks = {"tasks": ["options", "pair"], "include_path": str(write_tasks(folder / "tasks")), "task_limit": 4}
    fingerprint = checksum(folder / "tokenizer" / "tokenizer.json")
    return write_probe(folder, 257, fingerprint, tokenizer=str(folder / "tokenizer"), **tasks)


def design(path: Path, *overrides: str) -> Design:
    config, windows = read_request(path, overrides)
    return make_design(config, split_for_seeds(config, windows, Path("not built")))


def planted(found: Design) -> list[dict]:
    """Domains that do not differ, a task that rises and one that is far above all others."""
    drawn = np.random.default_rng(0)
    rows = []
    for one in found.runs:
        at = [window.name for window in found.windows].index(one.labels["window"])
        means = {"code": 3.0, "prose": 3.0, "task:options": 4 + 0.1 * at, "task:pair": 90.0}
        bits = {f"bits_per_byte/{name}": mean + drawn.normal(0, 1e-3) for name, mean in means.items()}
        rows.append({"name": one.name, **one.labels, **bits})
    return rows


def test_tasks_are_measures_beside_the_domains_and_not_in_their_mean(task_yaml: Path) -> None:
    found = design(task_yaml)
    answer = make_answer(found, planted(found))
    by_name = {measure.name: measure for measure in answer.measures}
    assert list(by_name) == ["code", "prose", "mean", "task:options", "task:pair"]
    assert by_name["task:options"].trends["text"].verdict == "rising"
    assert [one.mean for one in by_name["mean"].windows] == pytest.approx([3.0] * 3, abs=0.01)
    assert by_name["task:pair"].windows[0].mean == pytest.approx(90, abs=0.01)
    told = verdict_lines(answer)
    assert [line.split(", ")[2].split(":")[:2] for line in told][1:] == [["task", "options"], ["task", "pair"]]
    page = answer_page(answer, "answer.svg")
    assert "## small_lr: task:options" in page and "task pair: 8 right answers of" in page
    assert [task["name"] for task in answer.as_json()["tasks"]] == ["options", "pair"]


def test_a_learning_rate_is_chosen_by_the_domains_alone(task_yaml: Path) -> None:
    found = design(task_yaml, "protocols=[tuned]")
    rows = planted(found)
    for row in rows:
        # The domains are best at 1, the tasks at 3.
        row["bits_per_byte/code"] += 0.0 if row["lr_factor"] == 1 else 0.5
        row["bits_per_byte/task:pair"] += 0.0 if row["lr_factor"] == 3 else 50.0
    assert {one.lr_factor for measure in make_answer(found, rows).measures for one in measure.windows} == {1.0}


def test_a_plan_tells_tasks_and_counts_them(task_yaml: Path) -> None:
    text = plan(task_yaml, [])
    assert "task options: 4 right answers of " in text and "task pair: 8 right answers of " in text
    alone = design(task_yaml, "tasks=[]")
    assert "task " not in plan_text(alone).partition("Probes of this size")[0]
    both = design(task_yaml)
    # A token of measuring costs a third of one of training.
    per_token = alone.flops / len(alone.runs) / (alone.tokens + measured(alone) / 3)
    assert both.flops - alone.flops == pytest.approx(len(both.runs) * per_token * both.tasks.tokens / 3)
    assert both.tasks.tokens > 0 == alone.tasks.tokens


def measured(found: Design) -> int:
    from megatron_kaiyuan.data.indexed import IndexedCorpus

    return sum(IndexedCorpus(prefix).num_tokens for prefix in found.config.held_out.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks=[letters]", "'letters': its answers are the labels A, B, C"),
        ("tasks=[told]", "'told': its answers are generated"),
        ("tasks=[options,options]", "tasks: one is named twice"),
        ("tasks=[a/b.yaml]", "'a/b.yaml' is not the name of a task"),
        ("tokenizer=null", "tokenizer: tasks need one"),
        ("tokenizer=gone", "tokenizer: gone is not a folder"),
        ("task_limit=0", "task_limit"),
        ("num_fewshot=-1", "num_fewshot"),
        ("include_path=gone", "include_path: gone is not a folder"),
    ],
)
def test_a_mistake_in_tasks_is_named(task_yaml: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        design(task_yaml, override)


def test_another_tokenizer_than_the_corpora_is_refused(task_yaml: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + "\n")
    with pytest.raises(UserError, match="made by another tokenizer than the one in"):
        design(task_yaml, f"tokenizer={tmp_path}")


def test_an_answer_that_does_not_fit_is_refused_before_the_runs(task_yaml: Path, tmp_path: Path) -> None:
    rows = [{"question": "How long?", "options": ["x" * 65, "y"], "right": 0, "word": "w"}] * 2
    folder = write_tasks(tmp_path, rows)
    with pytest.raises(UserError, match="document 0 has 66 tokens, and the network reads 1 to 64"):
        design(task_yaml, f"include_path={folder}", "tasks=[options]")


def test_the_command_measures_tasks_after_each_run(task_yaml: Path, tmp_path: Path) -> None:
    lines = probe(task_yaml, ["train_tokens=1024"], tmp_path, slots=2)
    assert sum("task:options" in line for line in lines) == 1
    rows = [json.loads(line) for line in (tmp_path / "queue" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for name in ("task:options", "task:pair", "code", "prose"):
        values = [row[f"bits_per_byte/{name}"] for row in rows]
        # These networks saw other text; the figures themselves are checked in tests/research/queue.
        assert all(0 < value < 1000 for value in values) and len(set(values)) == 6
    told = json.loads((tmp_path / "answer" / "answer.json").read_text())
    assert [measure["name"] for measure in told["measures"]] == ["code", "prose", "mean", "task:options", "task:pair"]
    assert "task:pair" in (tmp_path / "answer" / "answer.svg").read_text()
    # The runs' files are enough: another call does not need the tasks' place, and trains nothing.
    kept = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "queue" / "runs").glob("*/result.json"))
    probe(task_yaml, ["train_tokens=1024"], tmp_path, slots=2)
    assert kept == sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "queue" / "runs").glob("*/result.json")
    )


def test_a_mixture_weighs_tasks_by_name() -> None:
    fields = {
        "recipe": "r.yaml", "corpora": {"a": "a", "b": "b"}, "held_out": {"code": "c"}, "runs": 4, "tokens": 100,
        "target_tokens": 1000, "tasks": ["options"], "tokenizer": "t",
    }  # fmt: skip
    assert MixRecipe(**fields).weights == {"code": 1.0, "task:options": 1.0}
    chosen = MixRecipe(**fields, objective={"task:options": 2.0})
    assert chosen.weights == {"task:options": 2.0} and chosen.measures == ["code", "task:options"]
    with pytest.raises(ValueError, match="objective: 'options' is none of code, task:options"):
        MixRecipe(**fields, objective={"options": 1.0})
    with pytest.raises(ValueError, match="rename the domain"):
        MixRecipe(**{**fields, "held_out": {"task:options": "c"}})


def test_items_of_a_study_are_written_once(tmp_path: Path) -> None:
    task = ClozeTask("one", (Item("a", " b"),))
    path = write_task(task, tmp_path)
    before = path.stat().st_mtime_ns
    assert write_task(ClozeTask("one", (Item("a", " b"),)), tmp_path) == path and path.stat().st_mtime_ns == before
