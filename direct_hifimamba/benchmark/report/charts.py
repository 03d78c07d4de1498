"""Charts: every function with the decorator `chart` becomes a section of the page."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from direct_hifimamba.benchmark.report.curves import Curve
from direct_hifimamba.benchmark.report.style import make_axes, to_uri
from direct_hifimamba.benchmark.report.tables import COSTS, RANKING, format_engineering
from direct_hifimamba.benchmark.score.metrics import METRICS, Array
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.spectrum import BANDS, EDGES
from direct_hifimamba.benchmark.score.table import Scores

WINDOW = 5
"""Entries of the log over which the loss is averaged."""

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


@dataclass(frozen=True)
class ReportData:
    """What charts show: results, scores, learning curves by model and seed, and arguments of `plot` by model."""

    results: Results
    scores: Scores
    curves: Mapping[tuple[str, int], Curve]
    styles: Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """A drawing as a data URI, and what it shows in words."""

    uri: str
    title: str
    description: str


class Chart(NamedTuple):
    """A kind of chart: heading and text of its section, and a function that yields drawings, if there are any."""

    title: str
    text: str
    draw: Callable[[ReportData], Iterator[Drawing]]


CHARTS: dict[str, Chart] = {}
"""All charts by the names of their functions, in the order of the page."""


def chart(title: str, text: str) -> Callable[[Callable[[ReportData], Iterator[Drawing]]], Chart]:
    """Return a decorator that adds a function to `CHARTS`."""

    def add(function: Callable[[ReportData], Iterator[Drawing]]) -> Chart:
        CHARTS[function.__name__] = Chart(title, text, function)
        return CHARTS[function.__name__]

    return add


@chart(
    title="Score against cost",
    text="Up and to the left is better. Bars: 95 % interval of the mean. The axis of the cost is logarithmic.",
)
def cost(data: ReportData) -> Iterator[Drawing]:
    """Yield a chart per acceleration and cost, with the models that have both a cost and a score."""
    metric, models = METRICS[RANKING], data.results.models
    for acceleration in data.results.protocol.accelerations:
        key = (acceleration, RANKING)
        rows = {row.model: row for row in data.results.summary if (row.acceleration, row.metric) == key}
        for column in (column for column in COSTS if column.is_charted):
            costs = {model.label: found for model in models if model.label in rows and (found := column.of(model))}
            if not costs:
                continue
            axes = make_axes(column.label, metric.heading)
            for label, value in costs.items():
                row = rows[label]
                if row.low is not None and row.high is not None:
                    axes.plot([value, value], [row.low, row.high], color=data.styles[label]["color"], linewidth=1.3)
                axes.plot([value], [row.mean], label=label, **data.styles[label])
            lowest, highest = min(costs.values()), max(costs.values())
            axes.set_xscale("log")
            axes.set_xlim(lowest / 1.25, highest * 1.25)
            span = highest / lowest
            # Where it would find fewer than two ticks, LogLocator takes more than there is room for.
            logarithmic = LogLocator(subs=(1,) if span > 30 else (1, 2, 5), numticks=5)
            axes.xaxis.set_major_locator(logarithmic if span > 6 else MaxNLocator(nbins=3))
            axes.xaxis.set_major_formatter(EngFormatter(column.unit))
            axes.xaxis.set_minor_locator(NullLocator())
            words = (
                f"{label} {format_engineering(value, column.unit)} and {metric.format(rows[label].mean)}"
                for label, value in costs.items()
            )
            title = f"{metric.label} against {column.label} at {acceleration}"
            yield Drawing(to_uri(axes), title, f"{', '.join(words)}.")


@chart(
    title="Error spectra",
    text="Energy of the error over energy of the target, both of magnitude images, in rings of their Fourier "
    "transform, from the centre to the Nyquist frequency: the mean over volumes and seeds. Lower is better; at 1 the "
    "error is as strong as the image itself.",
)
def error_spectra(data: ReportData) -> Iterator[Drawing]:
    """Yield a chart per acceleration, with a line per model."""
    description = "The numbers are in scores.parquet, as the metrics spectrum_0 (centre), spectrum_1, ..."
    for acceleration in data.results.protocol.accelerations:
        axes = make_axes("spatial frequency / Nyquist frequency", "relative error energy, magnitude", height=3.4)
        for model in data.results.models:
            bands = [data.scores.volumes(model.label, acceleration, name) for name in BANDS]
            values = [[value for files in band.values() for value in files.values()] for band in bands]
            if all(values):
                means = np.ma.masked_invalid(values).mean(axis=1).filled(np.nan)
                middles = np.convolve(EDGES, (0.5, 0.5), "valid")
                axes.plot(middles, means, label=model.label, markevery=3, **data.styles[model.label])
        if axes.lines:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_PLAIN)
            axes.yaxis.set_minor_locator(NullLocator())
            yield Drawing(to_uri(axes), f"Relative error energy at {acceleration}", description)


@chart(
    title="Learning curves",
    text=f"A line per seed, drawn from DIRECT's logs. The loss is a moving average over {WINDOW} entries of the log. "
    "Time is the number of iterations times the measured time of one, data loading included. There is a validation "
    "score if the specification asks for validations.",
)
def learning_curves(data: ReportData) -> Iterator[Drawing]:
    """Yield charts of loss and validation scores, against iterations and against time."""
    losses = {key: _smooth(curve.loss) for key, curve in data.curves.items() if curve.loss.size}
    yield from _draw_curves(data, losses, "training loss", scale="log")
    for name in dict.fromkeys(name for curve in data.curves.values() for name in curve.validation):
        scores = {key: curve.validation[name] for key, curve in data.curves.items() if name in curve.validation}
        metric, _, condition = name.partition(" ")
        label = METRICS[metric].heading if metric in METRICS else metric
        yield from _draw_curves(data, scores, f"validation {label}", condition)


def _draw_curves(
    data: ReportData, lines: dict[tuple[str, int], Array], label: str, condition: str = "", scale: str = "linear"
) -> Iterator[Drawing]:
    minutes = {
        model.label: model.cost.seconds_per_step / 60
        for model in data.results.models
        if model.cost is not None and model.cost.seconds_per_step is not None
    }
    for x_label, units in (("iteration", {model: 1.0 for model, _ in lines}), ("training time, min", minutes)):
        found = {key: points for key, points in lines.items() if key[0] in units}
        if not found:
            continue
        axes = make_axes(x_label, label)
        for (model, _), (iterations, values) in found.items():
            style = data.styles[model] | {"markersize": 4, "markevery": max(1, len(values) // 8)}
            axes.plot(units[model] * iterations, values, label=model, **style)
        axes.set_yscale(scale)
        axes.yaxis.set_major_formatter(_PLAIN)
        axes.yaxis.set_minor_formatter(_PLAIN)
        ends = ", ".join(f"{model} (seed {seed}) {values[-1]:.3g}" for (model, seed), (_, values) in found.items())
        title = " ".join(filter(None, (label, condition, "against", x_label)))
        yield Drawing(to_uri(axes), f"{title[0].upper()}{title[1:]}", f"At the end: {ends}.")


def _smooth(points: Array) -> Array:
    """Return points of shape (2, entries), iterations and values, with a moving average of the values."""
    iterations, values = points
    window = min(WINDOW, len(values))
    sums = np.convolve(values, np.ones(window), "same") / np.convolve(np.ones_like(values), np.ones(window), "same")
    return np.stack([iterations, sums])
