"""Figures of pages: what is kept of a long curve, and what the page is told of one."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.pages.plotting import COLOURS, render_plot, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VALUES = st.one_of(st.floats(-1e3, 1e3), st.just(float("nan")), st.just(float("inf")))


@given(st.lists(VALUES, min_size=1, max_size=5000))
def test_a_thinned_curve_keeps_its_peaks_and_ends(values: list[float]) -> None:
    x, y = np.arange(float(len(values))), np.array(values)
    finite = np.isfinite(y)
    kept_x, kept = thin(x, y)
    assert len(kept) <= min(finite.sum(), 2 * 450 + 2) and np.all(np.diff(kept_x) > 0)
    assert np.array_equal(y[kept_x.astype(int)], kept)
    if finite.any():
        assert (kept.min(), kept.max()) == (y[finite].min(), y[finite].max())
        assert (kept_x[0], kept_x[-1]) == (x[finite][0], x[finite][-1])


def test_a_single_peak_among_a_million_is_kept() -> None:
    y = np.zeros(1_000_000)
    y[654_321] = 7.0
    x, kept = thin(np.arange(1e6), y)
    assert x[kept == 7.0].tolist() == [654_321.0] and len(kept) < 1000


def draw(axes: Axes) -> None:
    axes.plot([1, 2, 4], [10.0, 0.001, 30.0], color=COLOURS[0], label="</script><b>loss")
    axes.axhline(5.0, color=COLOURS[1], label="reference")
    axes.axvline(2.0)
    axes.set(xlabel="tokens (k)", ylabel="nats & bits", yscale="log")
    axes.legend(loc="upper right")


def test_the_page_has_values_legend_and_words_of_a_figure() -> None:
    plot = render_plot(draw)
    facts = json.loads(plot.values)
    assert [one["name"] for one in facts["series"]] == ["</script><b>loss", "reference"]
    first = facts["series"][0]
    assert (facts["abscissas"][first["x"]], first["y"]) == ([1, 2, 4], [10, 0.001, 30]) and "<" not in plot.values
    assert [(one.name, one.colour, one.style) for one in plot.legend] == [
        ("</script><b>loss", "var(--c0)", "solid"),
        ("reference", "var(--c1)", "solid"),
    ]
    for picture, width in ((plot.full, 464), (plot.small, 358)):
        svg = ElementTree.fromstring(picture)
        assert svg.attrib["viewBox"].split()[2] == str(width)
        words = "Against tokens (k): </script><b>loss from 10 to 30, least 0.001, most 30; reference 5."
        assert svg.attrib["aria-label"] == words and "<b>" not in picture
        names = [element.attrib["id"] for element in svg.iter() if "id" in element.attrib]
        used = re.findall(r"url\(#(\w+)\)|href=\"#(\w+)\"", picture)
        assert len(set(names)) == len(names) and {one or other for one, other in used} == set(names)


def test_pixels_and_values_of_the_axes_belong_together() -> None:
    """The line's first and last point, read from the picture, lie where the page's script finds them."""
    svg = ElementTree.fromstring(render_plot(draw).full)
    axes = json.loads(svg.attrib["data-axes"])
    left, top, width, height = axes["box"]
    assert axes["log"] == [False, True]
    line = next(one.attrib["d"] for one in svg.iter("path") if "var(--c0)" in one.attrib.get("style", ""))
    points = [tuple(map(float, point)) for point in re.findall(r"([\d.]+) ([\d.]+)", line)]
    for (x, y), (value_x, value_y) in zip(points, [(1, 10.0), (2, 0.001), (4, 30.0)], strict=True):
        low, high = axes["x"]
        assert left + (value_x - low) / (high - low) * width == pytest.approx(x, abs=0.2)
        low, high = np.log10(axes["y"])
        assert top + (1 - (np.log10(value_y) - low) / (high - low)) * height == pytest.approx(y, abs=0.2)


def test_a_heat_map_says_its_values() -> None:
    def heat(axes: Axes) -> None:
        values = np.ma.masked_invalid([[1.0, 2.0, 3.0], [4.0, np.inf, 9.0]])
        axes.pcolormesh([0.0, 1.0, 2.0, 3.0], [0.5, 1.5, 2.5], values, rasterized=True)
        axes.set(xlabel="tokens", ylabel="layer")

    plot = render_plot(heat)
    import base64

    found = json.loads(plot.values)["map"]
    levels = np.frombuffer(base64.b64decode(found["levels"]), "<u2").reshape(2, 3)
    assert levels[1, 1] == 65_535 and (found["low"], found["high"]) == (1, 9)
    values = found["low"] + levels / 65_534 * (found["high"] - found["low"])
    assert values[[0, 0, 0, 1, 1], [0, 1, 2, 0, 2]] == pytest.approx([1, 2, 3, 4, 9], abs=1e-3)
    assert "from 1 to 9" in plot.full and plot.full.count("data:image/png") == 1
