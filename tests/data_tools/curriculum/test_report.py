"""`kaiyuan-data report`: page, JSON and table of built phases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.curriculum.recipe import load_order
from data_tools.curriculum.report import report_order
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.sample_run import write_phase

RECIPE = """
corpora: {web: corpora/web, wiki: corpora/wiki}
phases:
  - {name: one, order: shuffle, datasets: [{corpus: web, score: score}, {corpus: wiki}]}
  - {name: two, order: curriculum, datasets: [{corpus: web, score: score, keep: top 0.4}]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "order.yaml"
    path.parent.mkdir()
    path.write_text(RECIPE)
    dumps = [phase.model_dump(mode="json") for phase in load_order(path).phases]
    web, wiki = (0.5, 0.5), None
    write_phase(tmp_path / "phases/one", "one", "shuffle", 4000, {"web": web, "wiki": wiki}, recipe=dumps[0])
    write_phase(tmp_path / "phases/two", "two", "curriculum", 2000, {"web": (0.6, 1)}, best=0.4, recipe=dumps[1])
    return path


def test_writes_a_page_and_prints_the_table(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools", "report", str(recipe), "--phases", str(tmp_path / "phases")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    page = tmp_path / "phases/report.html"
    assert lines[-1] == f"report: 2 phases, 2 datasets, 6,000 tokens: {page}"
    assert lines[1].split() == ["web", *["1.00"] * 6, *["2.00"] * 4, "1.40"]
    assert lines[2].split() == ["wiki", *["-"] * 10, "1.00"]
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg ") == 4
    assert "mine <small>order of the data</small>" in text and "another recipe" not in text


def test_json_holds_the_figures(recipe: Path, tmp_path: Path) -> None:
    report = json.loads(report_order(recipe, [], tmp_path / "phases", None, as_json=True))
    assert not (tmp_path / "phases/report.html").exists()
    web = report["exposure"][0]
    assert (web["dataset"], web["score"], web["spread_evenly"]) == ("web", "score", [])
    assert web["seen"] == pytest.approx([1.0] * 6 + [2.0] * 4)
    one = report["phases"][0]
    assert sum(dataset["share"] for dataset in one["datasets"].values()) == pytest.approx(1)
    along = report["along"][1]
    assert along["tokens"][-1] == 6000 and along["share"]["web"] == [0.0] + [1.0] * 19
    assert along["mean_quantile"]["web"][0] is None and along["mean_quantile"]["web"][-1] == 1.0
    assert report["along"][0]["mean_quantile"]["wiki"] == [None] * 20
    assert report["notes"] == []


def test_a_phase_of_another_recipe_is_told(recipe: Path, tmp_path: Path) -> None:
    text = report_order(recipe, ["phases[1].seed=5"], tmp_path / "phases", None, as_json=False)
    assert "two was built from another recipe than this one" in text
    assert "two was built from another recipe" in (tmp_path / "phases/report.html").read_text()


def test_what_is_missing_or_damaged_is_named(recipe: Path, tmp_path: Path) -> None:
    profile = tmp_path / "phases/two/profile.json"
    content = json.loads(profile.read_text())
    del content["exposure"]
    profile.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"two/profile\.json: a field is missing or wrong \(exposure: field required\)"):
        report_order(recipe, [], tmp_path / "phases", None, as_json=True)
    with pytest.raises(
        UserError, match=r"elsewhere/one: no such phase; build it: kaiyuan-data curriculum .*order.yaml"
    ):
        report_order(recipe, [], tmp_path / "elsewhere", None, as_json=True)
