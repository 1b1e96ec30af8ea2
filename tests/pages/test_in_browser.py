"""Pages in Chromium: both schemes, both widths, values on hover, zoom, print, and no script at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.curriculum.order_page import build_order_report
from megatron_kaiyuan.pages.phase_mixes import read_phases
from megatron_kaiyuan.report import build_report
from tests.helpers.pages.browser import Tab, open_tab, require_browser
from tests.helpers.training.sample_run import TOKENS_PER_STEP, evaluation, step_row, write_run

WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
SMALLEST_PIXELS = 10.5
# Relative luminance and contrast by WCAG 2.2, of a colour as a browser computes it.
CONTRAST = """
const light = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number)
  .map(part => part / 255).map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
const contrast = (a, b) => {
  const [high, low] = [light(a), light(b)].sort((p, q) => q - p);
  return (high + 0.05) / (low + 0.05);
};
const paper = getComputedStyle(document.body).backgroundColor;
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with open_tab(require_browser()) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run with all that a report may show, and the page about its phases."""
    run_dir = write_run(tmp_path_factory.mktemp("pages"))
    lines = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        if line.startswith('{"step"') and line.endswith("}"):
            row = json.loads(line)
            measured = {"validation/loss": row["loss"] + 0.1, "validation/code_loss": row["loss"]}
            line = json.dumps({**row, **(measured if row["step"] % 10 == 0 else {})})
        lines.append(line)
    change = {"optimizer.clip_grad": {"was": 1.0, "now": 0.5}, "a" * 80: {"was": None, "now": "b" * 300}}
    texts = [{"prompt": "The sea is", "text": " wide" * 60 + "x" * 400}]
    facts = {"versions": {"torch": "2.13.0"}, "git": {"commit": "0" * 40, "dirty": True}, "host": "node" * 20}
    events = [
        {"event": "config_change", "step": 50, "changes": change},
        {"event": "samples", "step": 100, "tokens": 409_600, "samples": texts},
        {"event": "environment", **facts},
    ]
    lines[1:1] = [json.dumps(event) for event in events]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines))
    results = evaluation()
    bins = [{"from": 0.5, "to": 0.6, "items": 9, "confidence": 0.55, "accuracy": 0.4}]
    figures = {"items": 9, "accuracy": 0.4, "confidence": 0.55, "expected_calibration_error": 0.15, "bins": bins}
    results["model"]["calibration"] = {"arc_easy": figures}
    positions = [{"from": 0, "to": 1, "tokens": 9, "nats_per_token": 6.5}]
    results["model"]["held_out"]["by_position"] = [*positions, {**positions[0], "from": 1, "to": 256}]
    (run_dir / "evaluation.json").write_text(json.dumps(results))
    folder = run_dir.parent / "phases"
    phases = read_phases([folder / "one", folder / "two"])
    return {
        "report": build_report(run_dir, run_dir / "report.html"),
        "order": build_order_report(phases, folder / "order.html", "order", folder=folder),
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "order"])
def test_a_page_is_whole_at_each_width_and_scheme(
    tab: Tab, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    tab.open(pages[name], width, scheme)
    assert tab.complaints() == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    visible = "[...document.querySelectorAll('.plot svg')].filter(svg => svg.clientWidth)"
    figures = tab.value("document.querySelectorAll('figure').length")
    assert tab.value(f"{visible}.length") == figures > 1
    kinds = tab.value(f"{visible}.map(svg => svg.getAttribute('class'))")
    assert set(kinds) == {"full" if width > 1000 else "small"}
    smallest = tab.value(
        f"Math.min(...{visible}.flatMap(svg => [...svg.querySelectorAll('text')].map(text =>"
        " parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width)))"
    )
    assert smallest >= SMALLEST_PIXELS
    outside = tab.value(
        f"{visible}.flatMap(svg => [...svg.querySelectorAll('text')]"
        ".map(text => [text.textContent, text.getBoundingClientRect(), svg.getBoundingClientRect()])"
        ".filter(([, inner, outer]) => inner.left < outer.left - 1 || inner.right > outer.right + 1)"
        ".map(([words]) => words))"
    )
    assert outside == []


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_colours_are_seen_in_each_scheme(tab: Tab, pages: dict[str, Path], scheme: str, dark: bool) -> None:
    tab.open(pages["report"], 1280, scheme)
    assert tab.value(f"(() => {{ {CONTRAST} return light(paper) < 0.2; }})()") == dark
    text = "'body, figcaption, th, td, p.small, .tiles span, .plot text'"
    least = (
        f"Math.min(...[...document.querySelectorAll({text})].map(one => [one.closest('svg'), getComputedStyle(one)])"
        ".map(([drawn, style]) => contrast(drawn ? style.fill : style.color, paper)))"
    )
    assert tab.value(f"(() => {{ {CONTRAST} return {least}; }})()") >= 4.5
    lines = (
        "Math.min(...[0, 1, 2, 3, 4, 5, 6, 7].map(n => { const one = document.createElement('i');"
        " one.style.color = `var(--c${n})`; document.body.append(one);"
        " return contrast(getComputedStyle(one).color, paper); }))"
    )
    assert tab.value(f"(() => {{ {CONTRAST} return {lines}; }})()") >= 3


def place_of(tab: Tab, share: float) -> tuple[float, float, float]:
    """Where in the window a share of the first figure's axes lies, and how many pixels of them are seen."""
    tab.value("document.querySelectorAll('.plot')[2].scrollIntoView({block: 'center'})")
    return tuple(
        tab.value(
            "(() => { const drawn = [...document.querySelectorAll('.plot')[2].querySelectorAll('svg')];"
            " const svg = drawn.find(one => one.clientWidth);"
            " const area = svg.getBoundingClientRect(), [x, y, w, h] = JSON.parse(svg.dataset.axes).box;"
            " const k = area.width / svg.viewBox.baseVal.width;"
            f" return [area.left + k * (x + {share} * w), area.top + k * (y + h / 2), k * w]; }})()"
        )
    )


NOTE = "(() => { const note = document.querySelectorAll('.note')[2]; return note.hidden ? '' : note.innerText; })()"


@pytest.mark.parametrize("width", WIDTHS)
def test_hover_shows_the_values_of_the_metrics(tab: Tab, pages: dict[str, Path], width: int) -> None:
    tab.open(pages["report"], width)
    steps = 100
    for step in (25, 75):
        x, y, _ = place_of(tab, step / steps)
        tab.point(x, y)
        said = tab.value(NOTE).splitlines()
        assert said[0] == f"tokens (k): {step * TOKENS_PER_STEP / 1000:.5g}"
        assert f"of a step: {step_row(step)['loss']:.5g}" in said
    tab.point(1, 1)
    assert tab.value(NOTE) == ""


def test_a_drag_zooms_and_escape_shows_the_whole(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"], 1280)
    ticks = (
        "[...document.querySelectorAll('.plot')[2].querySelectorAll('.full .ticks text')].map(one => one.textContent)"
    )
    assert tab.value(ticks) == []
    (x, y, _), (to, _, _) = place_of(tab, 0.6), place_of(tab, 0.7)
    tab.point(x, y)
    tab.point(x, y, "mousePressed", pressed=True)
    tab.point(to, y, pressed=True)
    tab.point(to, y, "mouseReleased")
    # A tenth of 409.6 thousand tokens; the losses there are about 3.5.
    shown = [float(text) for text in tab.value(ticks)]
    assert len(shown) >= 4 and any(245 <= value <= 287 for value in shown)
    middle, y, _ = place_of(tab, 0.5)
    tab.point(middle, y)
    assert abs(float(tab.value(NOTE).splitlines()[0].split()[-1]) - 0.65 * 409.6) < TOKENS_PER_STEP / 1000
    tab.send("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    tab.value("document.querySelectorAll('.plot')[2].querySelector('.full').focus()")
    tab.send("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert tab.value(ticks) == [] and tab.complaints() == []


def test_figures_stand_without_scripts(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"], 390, scripts=False)
    assert tab.value("document.documentElement.className") == ""
    drawn = tab.value("[...document.querySelectorAll('.plot svg.small')].map(svg => svg.clientHeight)")
    assert len(drawn) > 10 and min(drawn) > 200


def test_the_page_prints_in_light_colours(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["report"], 718, "dark", media="print")
    assert tab.value(f"(() => {{ {CONTRAST} return light(paper); }})()") == 1
    assert tab.value("document.querySelectorAll('.plot svg.small')[0].clientWidth") > 300
    assert tab.print_pdf().startswith(b"%PDF")
