"""A drawing of matplotlib as SVG inside a page: small, in the page's colours, with what its script needs to zoom."""

from __future__ import annotations

import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's colours, which colour-blind readers can distinguish. layout.html says what each is on light and dark.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")
INK, FAINT, GRID = "#333333", "#b8b8b8", "#ececec"
# Elements of this gid move along when the page's script zooms, though they lie outside the axes.
MARK = "mark"
# Matplotlib's unit of length is 1/72 inch, so that a point of the drawing is a pixel of the page.
PIXELS_PER_INCH = 72
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_VARIABLES = {
    **{colour.lower(): f"var(--c{number})" for number, colour in enumerate(COLOURS)},
    **{INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"},
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font-family: [^;]*(; )?")
_NUMBER = re.compile(r"-?\d+\.\d+")
_CLIPPED = "clip-path"


def css_colour(colour: str) -> str:
    """The page's variable for one of our colours; others as they are."""
    return _VARIABLES.get(colour.lower(), colour)


def inline_svg(canvas: Canvas, axes: Axes, kind: str, words: str) -> Markup:
    """Draw, as an element of a page.

    Args:
        axes: the ones to zoom; others of the canvas (a colour bar) stay.
        kind: its class.
        words: text alternative.
    """
    buffer = io.BytesIO()
    # No date, so that the same run gives the same page.
    canvas.savefig(buffer, format="svg", dpi=2 * PIXELS_PER_INCH, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag.endswith(("metadata", "style")):
                parent.remove(child)
    for element in root.iter():
        _to_page(element)
    _rename(root)
    _wrap_clipped(root)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib.clear()
    root.attrib.update(
        {
            "class": kind,
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-label": words,
            "tabindex": "0",
            "data-axes": json.dumps(_axes(axes, float(width), float(height))),
        }
    )
    # The serializer has escaped every text.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _axes(axes: Axes, width: float, height: float) -> dict[str, object]:
    """Where the axes lie, in pixels, and their limits."""
    box = axes.get_position()
    place = [box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height]
    return {
        "box": [round(float(value), 2) for value in place],
        "x": [float(value) for value in axes.get_xlim()],
        "y": [float(value) for value in axes.get_ylim()],
        "log": [axes.get_xscale() == "log", axes.get_yscale() == "log"],
    }


def _to_page(element: ElementTree.Element) -> None:
    """Take off name spaces, fonts and digits beyond a tenth of a pixel; name colours by the page's variables."""
    element.tag = element.tag.removeprefix(_SVG)
    if _LINK in element.attrib:
        element.attrib["href"] = element.attrib.pop(_LINK)
    if style := element.attrib.get("style"):
        style = _COLOUR.sub(lambda found: css_colour(found[0]), _FONT.sub("", style))
        element.attrib["style"] = style
    for name in ("d", "x", "y", "width", "height", "transform"):
        if (value := element.attrib.get(name)) and element.tag != "svg":
            digits = 3 if name == "transform" else 1
            value = _NUMBER.sub(lambda found, digits=digits: f"{float(found[0]):.{digits}f}", value)  # type: ignore[misc]
            element.attrib[name] = " ".join(value.split())
    element.text = (element.text or "").strip() or None
    element.tail = None


def _rename(root: ElementTree.Element) -> None:
    """Identifiers that only this drawing has, and only those that are referred to; ticks and marks become classes."""
    text = ElementTree.tostring(root)
    own = "f" + hashlib.sha256(text).hexdigest()[:8]
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name == MARK or name.startswith("xtick_"):
            element.attrib["class"] = name.partition("_")[0]
        elif name.startswith("ytick_"):
            element.attrib["class"] = "ytick"
        elif re.search(rf'#{re.escape(name)}[")]'.encode(), text):
            element.attrib["id"] = own + name
        for attribute in ("href", _CLIPPED):
            if value := element.attrib.get(attribute):
                element.attrib[attribute] = re.sub(r"^(#|url\(#)", rf"\g<1>{own}", value)


def _wrap_clipped(root: ElementTree.Element) -> None:
    """Put what is clipped into groups that may be moved under the clip."""
    for parent in list(root.iter()):
        for place, child in enumerate(list(parent)):
            clip = child.attrib.pop(_CLIPPED, None)
            if clip is None:
                continue
            outer = ElementTree.Element("g", {_CLIPPED: clip})
            ElementTree.SubElement(outer, "g", {"class": "moves"}).append(child)
            parent[place] = outer
