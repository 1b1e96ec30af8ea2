from __future__ import annotations

import json
import re
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.report import build_report
from tests.helpers.pages.page_parts import Page
from tests.helpers.training.sample_run import evaluation, step_row, write_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = write_run(tmp_path_factory.mktemp("whole"))
    return build_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8")


def test_page_stands_alone_and_shows_every_figure(whole_page: str) -> None:
    text, page = whole_page, Page(whole_page)
    assert page.fetched == [] and not {"img", "link", "iframe", "object"} & set(page.tags)
    addresses = text.replace('"http://www.w3.org/2000/svg"', "").replace("url(#", "")
    assert not [word for word in ("url(", "@import", "http://", "https://", "fetch(") if word in addresses]

    monitored = ["Headroom by layer", "Residual stream by layer", "Headroom by tensor", "Updates"]
    assert page.titles == [
        *("Loss", "Learning rate", "Gradient norm", "Loss scale", "Speed"),
        *monitored,
        *("Datasets", "Quality"),
        "Speed over time",
    ]
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert [picture["class"] for picture in page.pictures] == ["full", "small"] * len(page.titles)
    for picture, svg in zip(page.pictures, map(ElementTree.fromstring, drawn), strict=True):
        assert picture["role"] == "img" and picture["aria-label"].startswith("Against ")
        assert len(list(svg.iter("path"))) > 5, f"{picture['aria-label']}: empty picture"
    assert "Not on this page" not in page.text
    assert len(text) < 1_000_000


def test_numbers_are_those_of_the_input(whole_page: str) -> None:
    page = Page(whole_page)
    results = evaluation()
    rows = {row[0]: row[1:] for row in page.tables["held-out"][1:]}
    assert rows == {
        "this model": ["5.123", "6.801", "1.678", "1.912", "0.613", "0.624"],
        "untrained": ["9.014", "6.801", "-2.213", "3.211", "0.263", "0.274"],
    }
    domains = results["model"]["held_out"]["domains"]
    assert page.tables["domains"][1:] == [
        [name, f"{row['tokens']:,}", f"{row['nats_per_token']:.3f}", f"{row['unigram_entropy']:.3f}"]
        for name, row in domains.items()
    ]
    assert page.tables["phases"][1:] == [
        ["shuffled", "shuffle", "0", "245,760", "code, english, mathematics"],
        ["rising", "curriculum", "245,760", "430,080", "code, mathematics"],
    ]
    assert page.tables["shares"][1:] == [
        ["code", "32.2 %", "48.7 %", "39.2 %", "165,376"],
        ["english", "33.9 %", "", "19.4 %", "81,920"],
        ["mathematics", "33.9 %", "51.3 %", "41.3 %", "174,080"],
    ]
    once, twice, half = ["1.00"], ["2.00"], ["1.50"]
    assert page.tables["exposure"][1:] == [
        ["code", "score", *once * 7, *half, *twice * 2, "1.25"],
        ["english", "score", *once * 10, "1.00"],
        ["mathematics *", "score", *once * 7, *half, *twice * 2, "1.25"],
    ]
    assert "* mathematics: shuffled took it without score" in page.text
    assert [row[:2] for row in page.tables["events"][1:]] == [["start", "0"], ["resume", "50"], ["stop", "100"]]
    assert page.tables["events"][2][3].startswith("continues from checkpoint step_50")
    assert page.tables["events"][1][2] == "2025-06-15 15:06:40 UTC"
    speed = np.median([step_row(step)["tokens_per_second"] for step in range(1, 101)])
    assert "bits of headroom, least" in page.text and "not finite" in page.text
    loss = statistics.fmean(step_row(step)["loss"] for step in range(91, 101))
    for shown in (
        f"{loss:.3f}",
        "loss, mean of the last 10 recorded steps",
        "409,600",
        f"{speed:,.0f}",
        "2.886 M",
        "preset: kaiyuan-tiny",
    ):
        assert shown in page.text
    assert "6 rows of metrics were trained again" in page.text
    assert "2 unreadable lines" in page.text
    assert "Checkpoints at steps: 50." in page.text


def test_names_from_the_input_are_text_and_not_markup(whole_page: str) -> None:
    assert "<b>english" not in whole_page and "&lt;b&gt;english" in whole_page


def test_same_run_same_page(run_dir: Path, tmp_path: Path) -> None:
    first, second = (build_report(run_dir, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_missing_parts_are_named_on_the_page(run_dir: Path) -> None:
    for path, words in (
        (run_dir / "evaluation.json", "Held-out results: evaluation.json is not there"),
        (run_dir.parent / "phases" / "two" / "profile.json", "phase profile not found"),
        (run_dir / "config.yaml", "Configuration:"),
    ):
        path.unlink()
        page = Page(build_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8"))
        assert "Not on this page" in page.text and words in page.text
    assert len(page.titles) == 10


def test_a_phase_of_an_earlier_version_is_shown_with_what_it_lacks(run_dir: Path) -> None:
    path = run_dir.parent / "phases" / "two" / "profile.json"
    profile = json.loads(path.read_text())
    del profile["version"]
    path.write_text(json.dumps(profile))
    page = Page(build_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8"))
    assert "Exact shares: rising was built by an earlier version" in page.text
    assert "shuffled was built by an earlier version" not in page.text
    assert "shares" in page.tables


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}, "baseline": null}', '{"model": {"held_out": {}}}'])
def test_a_damaged_evaluation_is_named_on_the_page(run_dir: Path, content: str) -> None:
    (run_dir / "evaluation.json").write_text(content)
    page = Page(build_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8"))
    assert "Held-out results: " in page.text and "held-out" not in page.tables


def test_tasks_have_a_table_with_or_without_held_out_text(run_dir: Path) -> None:
    results = evaluation()
    for which, bits in (("model", 1.25), ("baseline", 2.5)):
        results[which]["tasks"] |= {"arc_easy": {"acc": 0.5, "bits_per_byte": bits}, "told": {"exact_match": 0.0}}
    del results["baseline"]["tasks"]["told"]
    (run_dir / "evaluation.json").write_text(json.dumps(results))
    rows = [["arc_easy", "acc", "0.500", "0.500"], ["arc_easy", "bits_per_byte", "1.250", "2.500"]]
    page = Page(build_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8"))
    assert page.tables["tasks"][1:] == [*rows, ["told", "exact_match", "0.000", "–"]]
    assert len(page.tables["held-out"]) == 3

    for which in ("model", "baseline"):
        results[which]["held_out"] = None
        del results[which]["tasks"]["heldout_rolling"], results[which]["tasks"]["heldout_continuation"]
    (run_dir / "evaluation.json").write_text(json.dumps(results))
    page = Page(build_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8"))
    assert "held-out" not in page.tables and "domains" not in page.tables and len(page.tables["tasks"]) == 4


def test_a_run_without_metrics_is_a_users_mistake(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        build_report(tmp_path / "none", tmp_path / "report.html")
    (run_dir / "metrics.jsonl").write_text(json.dumps({"event": "start", "step": 0}))
    with pytest.raises(UserError, match="no training step"):
        build_report(run_dir, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_of_one_step_has_a_page(run_dir: Path) -> None:
    row = {**step_row(1), "loss": float("nan")}
    (run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    page = Page(build_report(run_dir, run_dir / "report.html").read_text(encoding="utf-8"))
    assert "Activations by layer: metrics.jsonl holds none" in page.text
    assert len(page.titles) == 8 and "Checkpoints at steps: none." in page.text


@pytest.mark.parametrize("changes", [{}, {"sandwich_norm": False, "logits_soft_cap": None}])
@pytest.mark.parametrize("preset", ["kaiyuan-tiny", "kaiyuan-2b"])
def test_parameters_are_those_of_the_exported_network(preset: str, changes: dict) -> None:
    from megatron_kaiyuan.export.formats import empty_network, stock_format, transformers_config

    model = ModelConfig(preset=preset, **changes)
    for written_as in ("kaiyuan", stock_format(model)):
        config = transformers_config(model, written_as, 0, "float32")
        assert count_parameters(model) == empty_network(config, written_as).num_parameters()


def test_only_a_report_of_the_same_run_is_replaced(run_dir: Path, tmp_path: Path) -> None:
    mine = tmp_path / "page.html"
    mine.write_text("<html>mine</html>")
    for force in (False, True):
        with pytest.raises(UserError, match=r"page\.html: exists and is not a page that this command wrote"):
            build_report(run_dir, mine, force)
    assert mine.read_text() == "<html>mine</html>"
    with pytest.raises(UserError, match="is a folder, but --output names the file to write"):
        build_report(run_dir, tmp_path)
    build_report(run_dir, tmp_path / "report.html")
    build_report(run_dir, tmp_path / "report.html")
    other = tmp_path / "other_run"
    shutil.copytree(run_dir, other)
    with pytest.raises(UserError, match=r"holds a page .* made from something else"):
        build_report(other, tmp_path / "report.html")
    build_report(other, tmp_path / "report.html", force=True)
