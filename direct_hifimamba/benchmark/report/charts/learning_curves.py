"""Training loss and validation score while the models were trained."""

import numpy as np
from matplotlib.ticker import FuncFormatter

from direct_hifimamba.benchmark.report.charts.chart import Drawing, ReportData, chart
from direct_hifimamba.benchmark.report.charts.style import canvas
from direct_hifimamba.benchmark.score.metrics import METRICS, Array

WINDOW = 5
"""Entries of the log over which the loss is averaged."""


@chart(
    title="Learning curves",
    text=f"A line per seed, drawn from DIRECT's logs. The loss is a moving average over {WINDOW} entries of the log. "
    "Time is the number of iterations times the measured time of one, data loading included. There is a validation "
    "score if the specification asks for validations.",
)
def learning_curves(data: ReportData) -> list[Drawing]:
    """Return charts of loss and validation scores, against iterations and against time."""
    losses = {key: _smooth(curve.loss) for key, curve in data.curves.items() if curve.loss.size}
    drawings = _draw(data, losses, "training loss", scale="log")
    for name in dict.fromkeys(name for curve in data.curves.values() for name in curve.validation):
        scores = {key: curve.validation[name] for key, curve in data.curves.items() if name in curve.validation}
        metric, _, condition = name.partition(" ")
        label = METRICS[metric].heading if metric in METRICS else metric
        drawings += _draw(data, scores, f"validation {label}", condition)
    return drawings


def _draw(
    data: ReportData, lines: dict[tuple[str, int], Array], label: str, condition: str = "", scale: str = "linear"
) -> list[Drawing]:
    minutes = {
        model.label: model.cost.seconds_per_step / 60
        for model in data.results.models
        if model.cost is not None and model.cost.seconds_per_step is not None
    }
    drawings = []
    for x_label, units in (("iteration", {model: 1.0 for model, _ in lines}), ("training time, min", minutes)):
        found = {key: points for key, points in lines.items() if key[0] in units}
        if not found:
            continue
        with canvas(x_label, label) as drawing:
            for (model, _), (iterations, values) in found.items():
                style = data.styles[model] | {"markersize": 4, "markevery": max(1, len(values) // 8)}
                drawing.axes.plot(units[model] * iterations, values, label=model, **style)
            drawing.axes.set_yscale(scale)
            drawing.axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            drawing.axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ends = ", ".join(f"{model} (seed {seed}) {values[-1]:.3g}" for (model, seed), (_, values) in found.items())
        title = " ".join(filter(None, (label, condition, "against", x_label)))
        drawings.append(Drawing(drawing.uri, f"{title[0].upper()}{title[1:]}", f"At the end: {ends}."))
    return drawings


def _smooth(points: Array) -> Array:
    """Return points of shape (2, entries), iterations and values, with a moving average of the values."""
    iterations, values = points
    window = min(WINDOW, len(values))
    sums = np.convolve(values, np.ones(window), "same") / np.convolve(np.ones_like(values), np.ones(window), "same")
    return np.stack([iterations, sums])
