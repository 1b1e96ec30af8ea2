"""The page of a comparison: whole in itself, with what the text says, and never over something else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_kaiyuan.cli import app
from megatron_kaiyuan.compare.compare import Comparison, compare_runs
from megatron_kaiyuan.compare.page import write_comparison
from megatron_kaiyuan.compare.show import difference_text, value_text
from megatron_kaiyuan.errors import UserError
from tests.helpers.pages.browser import open_tab, require_browser
from tests.helpers.pages.page_parts import Page
from tests.helpers.training.sample_run import evaluation, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with an evaluation each, whose names are markup."""
    root = tmp_path_factory.mktemp("compared")
    folders = [write_run(root / "first"), root / "<b>second"]
    shutil.copytree(folders[0], folders[1])
    results = evaluation()
    results["model"]["held_out"]["nats_per_token"] = 4.5
    (folders[1] / "evaluation.json").write_text(json.dumps(results))
    return folders


@pytest.fixture(scope="module")
def found(runs: list[Path]) -> Comparison:
    return compare_runs(runs)


@pytest.fixture(scope="module")
def page(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "compare.html"
    write_comparison(found, path)
    return path


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_page_stands_alone(text: str) -> None:
    # "#..." is a mark within the page.
    assert not [place for place in Page(text).fetched if not place.startswith("#")] and not {
        "link",
        "iframe",
        "object",
    } & set(Page(text).tags)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert "<b>second" not in text and "&lt;b&gt;second" in text


def test_the_page_shows_what_the_text_says(found: Comparison, text: str) -> None:
    table = Page(text).tables["measures"]
    for measure in found.measures:
        for estimate, difference in zip(measure.estimates, measure.differences, strict=True):
            cells = [value_text(measure, estimate), difference_text(measure, difference)]
            assert any(row[1:3] == cells for row in table), (measure.what, cells)
    assert ["<b>second", "4.5000", "-0.6230", ""] in table


def test_the_page_fits_into_a_telephone_and_says_nothing_to_the_console(page: Path) -> None:
    with open_tab(require_browser()) as tab:
        for width, scheme in ((1100, "light"), (390, "dark")):
            tab.open(page, width, scheme)
            assert tab.complaints() == []
            assert tab.value("document.documentElement.scrollWidth") == width


def test_figures_are_of_losses_on_every_axis(text: str) -> None:
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    losses = ["Loss against tokens", "Difference", "Loss against FLOPs", "Loss against time"]
    assert titles == [*losses, "Learning rate", "Gradient norm", "Speed"]


def test_the_command_prints_and_writes_and_leaves_other_files_alone(runs: list[Path], tmp_path: Path) -> None:
    page, runner = tmp_path / "page.html", CliRunner()
    words = ["compare", *map(str, runs), "--output", str(page)]
    done = runner.invoke(app, [*words, "--json"])
    assert done.exit_code == 0 and len(json.loads(done.stdout)["runs"]) == 2 and page.exists()
    first = page.read_bytes()
    assert runner.invoke(app, words).exit_code == 0 and page.read_bytes() == first, "the same runs, the same page"

    turned = runner.invoke(app, ["compare", *map(str, runs[::-1]), "--output", str(page)])
    assert isinstance(turned.exception, UserError) and "made from something else" in str(turned.exception)
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    for more in ([], ["--force"]):
        refused = runner.invoke(app, ["compare", *map(str, runs), "--output", str(mine), *more])
        assert isinstance(refused.exception, UserError) and refused.stdout == "", "before the runs are read"
    assert mine.read_text() == "mine"
