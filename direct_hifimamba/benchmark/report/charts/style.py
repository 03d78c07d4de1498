"""How charts look: one colour and marker per model, in SVG files that a page holds as data."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HIGHLIGHT = "#d55e00"
COLOURS = ("#0011ff", "#66aaaa", "#660000", "#ee33ff", "#999966", "#550055", "#9955aa", "#446655", "#551199")
"""Any two, and HIGHLIGHT, differ by 25 in CIELAB for colour-blind eyes as well; contrast with white is at least 2.6."""
MARKERS = ("o", "s", "^", "v", "P", "X", "p", "<", ">", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))

WIDTH = 4.4
"""Inches, of 72 units each: about a phone's width."""

SETTINGS: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "charts",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Style:
    """How a model looks in every chart: no other has the same colour and dashes, or the same marker and colour."""

    colour: str
    marker: str
    dashes: Any
    highlighted: bool

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of `plot`."""
        return {
            "color": self.colour,
            "linestyle": self.dashes,
            "linewidth": 2.6 if self.highlighted else 1.3,
            "marker": self.marker,
            "markersize": 9 if self.highlighted else 5.5,
            "zorder": 4 if self.highlighted else 3,
        }


def choose_styles(labels: Sequence[str], highlighted: Sequence[str]) -> dict[str, Style]:
    """Return a style for every label; `highlighted` ones share a colour that no other has."""
    styles, others, leaders = {}, 0, 0
    for label in labels:
        if label in highlighted:
            styles[label] = Style(HIGHLIGHT, ("*", "D", "d")[leaders % 3], DASHES[leaders // 3 % len(DASHES)], True)
            leaders += 1
        else:
            dashes = DASHES[others // len(COLOURS) % len(DASHES)]
            styles[label] = Style(COLOURS[others % len(COLOURS)], MARKERS[others % len(MARKERS)], dashes, False)
            others += 1
    return styles


class Canvas:
    """Axes of a chart; after the block in which it is drawn, `uri` holds it."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.uri = ""


@contextmanager
def canvas(x_label: str, y_label: str = "", height: float = 2.8) -> Iterator[Canvas]:
    """Yield a canvas with labelled axes; `height` is in inches, without the legend below."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        drawing = Canvas(figure.add_subplot())
        drawing.axes.grid()
        drawing.axes.set_axisbelow(True)
        yield drawing
        drawing.axes.set(xlabel=x_label, ylabel=y_label)
        handles, labels = drawing.axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True))  # a model is drawn once for every seed
        if entries:
            figure.set_figheight(height + 0.2 * math.ceil(len(entries) / 2))
            figure.legend(entries.values(), entries, loc="outside lower center", ncols=2, fontsize="small")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing.uri = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
