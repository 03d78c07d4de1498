"""Charts as inline SVG for a page that is light or dark: text stays text, and what is black takes its colour."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito's colours, which differ for colour-blind eyes as well, but for yellow, which is lost on white.
HIGHLIGHT = "#d55e00"
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "v", "P", "X", "p", "h", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))

INK = "#000001"
"""Stands for the colour of the page's text."""

WIDTH, NARROW = 4.4, 3.4
"""Inches, of 72 units each: about a phone's width, and what stands four in a row on a screen."""

SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.alpha": 0.2,
    "grid.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "charts",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Style:
    """How a model looks in every chart: colour, marker and dashes together are unique."""

    colour: str
    marker: str
    dashes: Any
    highlighted: bool

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of `plot`."""
        size = 9 if self.highlighted else 5.5
        return {
            "color": self.colour,
            "linestyle": self.dashes,
            "linewidth": 2.6 if self.highlighted else 1.3,
            "marker": self.marker,
            "markersize": size,
            "zorder": 4 if self.highlighted else 3,
        }


def choose_styles(labels: Sequence[str], highlighted: Sequence[str]) -> dict[str, Style]:
    """A style for every label; `highlighted` ones share a colour that no other has."""
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


def draw_key(style: Style) -> Markup:
    """The line and marker of a style, for a legend."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(0.5, 0.2))
        figure.add_artist(Line2D([0.05, 0.5, 0.95], [0.5, 0.5, 0.5], markevery=[1], **style.line))
        return _to_svg(figure)


def draw_distributions(
    slices: Mapping[str, Sequence[float]],
    volumes: Mapping[str, Sequence[float]],
    intervals: Mapping[str, tuple[float, float, float]],
    styles: Mapping[str, Style],
    axis_label: str,
) -> Markup:
    """A row per model: box over the slices, dots for the volumes below it, and the mean with its interval.

    Parameters
    ----------
    slices, volumes : mapping
        Values by model. The box has the quartiles, its whiskers the 5th and 95th percentile.
    intervals : mapping
        Mean, lower and upper bound by model.
    styles : mapping
    axis_label : str

    Returns
    -------
    Markup
    """
    labels = list(slices)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, 0.65 + 0.3 * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        for row, label in enumerate(labels):
            colour = styles[label].colour
            line = {"color": colour, "linewidth": 1.3}
            axes.boxplot(
                [list(slices[label])],
                positions=[row],
                orientation="horizontal",
                whis=(5, 95),
                widths=0.62,
                showfliers=False,
                boxprops=line,
                whiskerprops=line,
                capprops=line,
                medianprops=line,
            )
            axes.plot(volumes[label], [row + 0.4] * len(volumes[label]), "o", markersize=3, color=colour)
            if label in intervals:
                mean, low, high = intervals[label]
                axes.plot([low, high], [row, row], color=INK, linewidth=3, solid_capstyle="butt")
                axes.plot([mean], [row], "D", color=INK, markersize=4.5)
        axes.set_yticks(range(len(labels)), labels)
        for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
            tick.set_fontweight("bold" if styles[label].highlighted else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.35, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x")
        axes.set_xlabel(axis_label)
        return _to_svg(figure)


def draw_cost(
    points: Mapping[str, tuple[float, float, float, float]],
    styles: Mapping[str, Style],
    cost_label: str,
    unit: str,
    score_label: str,
) -> Markup:
    """A point per model, at cost (on a logarithmic axis) and mean, with the interval of the mean.

    Parameters
    ----------
    points : mapping
        Cost, mean, lower and upper bound by model.
    styles : mapping
    cost_label, unit : str
        Name and unit of the cost.
    score_label : str

    Returns
    -------
    Markup
    """
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(NARROW, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for label, (cost, mean, low, high) in points.items():
            axes.plot([cost, cost], [low, high], color=styles[label].colour, linewidth=1.3)
            axes.plot([cost], [mean], **styles[label].line)
        axes.set_xscale("log")
        costs = [point[0] for point in points.values()]
        axes.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
        span = max(costs) / min(costs)
        # Where it would find fewer than two ticks, LogLocator takes more than there is room for.
        logarithmic = LogLocator(subs=(1,) if span > 30 else (1, 2, 5), numticks=5)
        axes.xaxis.set_major_locator(logarithmic if span > 6 else MaxNLocator(nbins=3))
        axes.xaxis.set_major_formatter(EngFormatter(unit))
        axes.xaxis.set_minor_locator(NullLocator())
        _finish(axes, cost_label, score_label)
        return _to_svg(figure)


def draw_spectra(edges: Sequence[float], spectra: Mapping[str, Sequence[float]], styles: Mapping[str, Style]) -> Markup:
    """Relative error energy by spatial frequency, a line per model.

    Parameters
    ----------
    edges : sequence of B + 1 floats
        Bounds of the bands, as fractions of the Nyquist frequency.
    spectra : mapping
        B values by model.
    styles : mapping

    Returns
    -------
    Markup
    """
    middles = np.convolve(edges, (0.5, 0.5), "valid")
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for label, values in spectra.items():
            axes.plot(middles, values, markevery=3, **styles[label].line)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        _finish(axes, "spatial frequency / Nyquist frequency", "relative error energy, magnitude")
        return _to_svg(figure)


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.grid()
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _to_svg(figure: Figure) -> Markup:
    """SVG of a figure to be put into a page beside others: few identifiers, and none that another chart has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| version="[\d.]+"| xmlns(?::xlink)?="[^"]*"', "", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    references = r'((?:href="|url\()#)([\w-]+)'
    used = {name for _, name in re.findall(references, svg)}
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r' id="([\w.-]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(references, rf"\g<1>{prefix}-\g<2>", svg)
    svg = svg.replace("xlink:href", "href").replace(INK, "currentColor")
    return Markup(re.sub(r"\s*\n\s*", "\n", svg))
