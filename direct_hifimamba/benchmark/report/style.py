"""How charts look: one colour and marker per model, in SVG files that a page holds as data."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#d55e00", "#0011ff", "#66aaaa", "#660000", "#ee33ff", "#999966", "#550055", "#9955aa", "#446655", "#551199")
"""Any two differ by 25 in CIELAB for colour-blind eyes as well; contrast with white is at least 2.6."""
MARKERS = ("*", "o", "s", "^", "v", "P", "X", "p", "<", ">")
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


def choose_styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return arguments of `plot` for every label: no two share colour, marker and dashes."""
    styles = cycler(linestyle=DASHES) * cycler(color=COLOURS, marker=MARKERS, linewidth=[1.5] * len(COLOURS))
    return dict(zip(labels, styles(), strict=False))


def make_axes(x_label: str, y_label: str, height: float = 2.8) -> Axes:
    """Return labelled axes; `height` is in inches, without the legend below."""
    with mpl.rc_context(SETTINGS):
        axes = Figure(figsize=(WIDTH, height), layout="constrained").add_subplot()
        axes.grid()
        axes.set_axisbelow(True)
        axes.set(xlabel=x_label, ylabel=y_label)
    return axes


def to_uri(axes: Axes) -> str:
    """Return what was drawn, with a legend below, as an SVG file in a data URI."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # a model is drawn once for every seed
    buffer = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(entries) / 2))
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=2, fontsize="small")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
