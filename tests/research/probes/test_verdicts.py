"""From rows to verdicts: planted rows, then a probe of real runs by the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_sealed_json
from megatron_kaiyuan.research.probes.answer import ProbeAnswer, make_answer
from megatron_kaiyuan.research.probes.command import probe
from megatron_kaiyuan.research.probes.design import Design, make_design, split_for_seeds
from megatron_kaiyuan.research.probes.pages import answer_page, verdict_lines
from megatron_kaiyuan.research.probes.request import read_request
from tests.helpers.processes.rank_server import run

COURSE = {"code": (0.0, 0.1, 0.2), "prose": (0.2, 0.1, 0.0)}


def planted(design: Design, best_factor: float | None = None) -> list[dict]:
    """Rows whose domain `code` rises and `prose` falls with the quantile; another learning rate is worse by 1."""
    drawn = np.random.default_rng(0)
    shared = drawn.normal(0, 0.05, 2)
    rows = []
    for one in design.runs:
        at = [window.name for window in design.windows].index(one.labels["window"])
        worse = 0.0 if best_factor in (None, one.labels["lr_factor"]) else 1.0
        bits = {
            f"bits_per_byte/{domain}": 3 + course[at] + shared[one.labels["seed"]] + worse + drawn.normal(0, 1e-4)
            for domain, course in COURSE.items()
        }
        rows.append({"name": one.name, **one.labels, **bits})
    return rows


def answered(path: Path, *overrides: str, best_factor: float | None = None) -> ProbeAnswer:
    config, windows = read_request(path, overrides)
    design = make_design(config, split_for_seeds(config, windows, Path("not built")))
    return make_answer(design, planted(design, best_factor))


def test_courses_are_told_and_differences_are_paired(probe_yaml: Path) -> None:
    answer = answered(probe_yaml)
    by_name = {measure.name: measure for measure in answer.measures}
    assert list(by_name) == ["code", "prose", "mean"]
    assert {name: measure.trends["text"].verdict for name, measure in by_name.items()} == {
        "code": "rising",
        "prose": "falling",
        "mean": "cannot tell",
    }
    # The seeds differ by .05 or so, which falls out of differences and of their noise.
    code = by_name["code"].windows
    assert [one.difference for one in code] == [None, pytest.approx(0.1, abs=1e-3), pytest.approx(0.2, abs=1e-3)]
    assert by_name["code"].paired_sd < 1e-3 and by_name["code"].freedom == 2
    assert all(0 < one.half_width < 0.01 for one in code)


def test_each_window_gets_its_own_learning_rate(probe_yaml: Path) -> None:
    answer = answered(probe_yaml, "protocols=[small_lr,tuned]", best_factor=3.0)
    tuned = [measure for measure in answer.measures if measure.protocol == "tuned"]
    assert {one.lr_factor for measure in tuned for one in measure.windows} == {3.0}
    small = next(measure for measure in answer.measures if measure.protocol == "small_lr")
    # The only one there was, and it was worse by 1.
    assert small.windows[0].mean - tuned[0].windows[0].mean == pytest.approx(1, abs=1e-2)
    assert small.trends["text"].verdict == tuned[0].trends["text"].verdict == "rising"


def test_a_network_that_diverged(probe_yaml: Path) -> None:
    config, windows = read_request(probe_yaml, ["protocols=[tuned]"])
    design = make_design(config, split_for_seeds(config, windows, Path("not built")))
    rows = planted(design, best_factor=3.0)
    for row in rows:
        if row["lr_factor"] == 3.0 and row["window"] == windows[1].name:
            row["bits_per_byte/code"] = float("nan")
    chosen = [one.lr_factor for one in make_answer(design, rows).measures[0].windows]
    assert chosen[::2] == [3.0, 3.0] and chosen[1] != 3.0
    for row in rows:
        row["bits_per_byte/code"] = float("nan")
    with pytest.raises(UserError, match=r"window 'text_0-0.2', tuned: the network diverged; lower"):
        make_answer(design, rows)


def test_the_page_has_all_of_it(probe_yaml: Path) -> None:
    answer = answered(probe_yaml, "protocols=[small_lr,tuned]")
    page = answer_page(answer, "answer.svg")
    for words in ("not knowledge", "**rising**", "**cannot tell**", "## tuned: prose", "text_0.3-0.5", "x 0.1"):
        assert words in page
    # Every table's lines have as many cells as its head.
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert verdict_lines(answer)[0].startswith("text, small_lr, mean: cannot tell")


def test_a_probe_by_the_command(probe_yaml: Path, tmp_path: Path) -> None:
    probing = ["-m", "megatron_kaiyuan.cli", "probe", probe_yaml]
    command = [*probing, "--output", tmp_path]
    plan = run(1, [*probing, "--plan"])
    assert plan.returncode == 0 and "6 runs" in plan.stdout and not list(tmp_path.iterdir()), plan.stderr
    done = run(1, command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"probe: {tmp_path / 'answer' / 'answer.md'}"
    answer = json.loads((tmp_path / "answer" / "answer.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "queue" / "results.jsonl").read_text().splitlines()]
    for measure in answer["measures"][:2]:
        for window in measure["windows"]:
            mine = [row[f"bits_per_byte/{measure['name']}"] for row in rows if row["window"] == window["window"]]
            assert window["mean"] == pytest.approx(np.mean(mine)) and len(mine) == 2
    assert (tmp_path / "answer" / "answer.svg").read_text().count("<svg") == 1
    assert set(read_sealed_json(tmp_path / "answer" / "manifest.json", "manifest")["files"]) == {
        "answer.json",
        "answer.md",
        "answer.svg",
    }
    # Again it is the same answer from the same runs; other settings replace it with --force only.
    before = {path.name: path.read_bytes() for path in (tmp_path / "answer").iterdir()}
    assert probe(probe_yaml, (), tmp_path) == done.stdout.splitlines()
    assert {path.name: path.read_bytes() for path in (tmp_path / "answer").iterdir()} == before
    missing = run(1, probing)
    assert missing.returncode == 2 and "--output: name the folder" in missing.stderr
    other = run(1, [*command, "significance=0.01"])
    assert other.returncode == 2 and "replace it with --force" in other.stderr
