"""Training loss and validation score while the models were trained."""

from collections.abc import Callable

import numpy as np
from matplotlib.ticker import FuncFormatter

from direct_hifimamba.benchmark.report.charts.chart import Drawing, ReportData, chart
from direct_hifimamba.benchmark.report.charts.style import canvas
from direct_hifimamba.benchmark.report.curves import Curve
from direct_hifimamba.benchmark.score.metric import Array
from direct_hifimamba.benchmark.score.metrics import METRICS

WINDOW = 5
"""Entries of the log over which the loss is averaged."""


@chart(
    title="Learning curves",
    text=f"A line per seed, drawn from DIRECT's logs. The loss is a moving average over {WINDOW} entries of the log. "
    "Time is that of training, data loading included, without validation and without interruptions. There is a "
    "validation score if the specification asks for validations.",
)
def learning_curves(data: ReportData) -> list[Drawing]:
    """Return charts of loss and validation scores, against iterations and against time."""
    losses = {key: (curve, _smooth(curve.loss)) for key, curve in data.curves.items() if len(curve.loss)}
    drawings = _draw(data, losses, "training loss", lambda axes: axes.set_yscale("log"))
    for name in dict.fromkeys(name for curve in data.curves.values() for name in curve.validation):
        scores = {
            key: (curve, curve.validation[name]) for key, curve in data.curves.items() if name in curve.validation
        }
        metric = METRICS.get(name.partition(" ")[0])
        label = f"validation {metric.heading if metric else name}"
        drawings += _draw(data, scores, label, lambda axes: None, name.partition(" ")[2])
    return drawings


def _draw(
    data: ReportData,
    lines: dict[tuple[str, int], tuple[Curve, Array]],
    label: str,
    scale: Callable[..., object],
    condition: str = "",
) -> list[Drawing]:
    drawings = []
    for x_label in ("iteration", "training time, min"):
        found = {
            key: (iterations if x_label == "iteration" else curve.minutes(iterations), values)
            for key, (curve, (iterations, values)) in lines.items()
        }
        if not any(np.isfinite(x).any() for x, _ in found.values()):
            continue
        with canvas(x_label, label) as drawing:
            for (model, _), (x, values) in found.items():
                style = data.styles[model] | {"markersize": 4, "markevery": max(1, len(x) // 8)}
                drawing.axes.plot(x, values, label=model, **style)
            scale(drawing.axes)
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
