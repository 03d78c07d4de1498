"""Scores of slices."""

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import MaxNLocator

from direct_hifimamba.benchmark.report.charts.chart import Drawing, ReportData, chart
from direct_hifimamba.benchmark.report.charts.style import canvas
from direct_hifimamba.benchmark.report.tables import TITLES
from direct_hifimamba.benchmark.score.metric import Array
from direct_hifimamba.benchmark.score.metrics import METRICS


@chart(
    title="Distributions",
    text="Boxes: quartiles of the slices, with whiskers to the 5th and 95th percentile. Values are means over "
    "seeds. Only trained models are shown.",
)
def distributions(data: ReportData) -> list[Drawing]:
    """Return a chart per metric and acceleration. Untrained reconstructions, which are far off, would set the scale."""
    trained = [model.label for model in data.results.models if model.kind == "trained"]
    drawings = []
    for name in data.scores.metrics:
        for acceleration in data.results.protocol.accelerations:
            rows = data.rows(acceleration, name)
            labels = [label for label in trained if label in rows]
            if labels:
                drawings.append(_draw(data, acceleration, name, labels))
    return drawings


def _draw(data: ReportData, acceleration: str, name: str, labels: list[str]) -> Drawing:
    metric = METRICS[name]
    values = [_mean_over_seeds(data.scores.slices(label, acceleration, name)) for label in labels]
    with canvas(metric.heading, height=0.65 + 0.34 * len(labels)) as drawing:
        boxes = drawing.axes.boxplot(
            values, orientation="horizontal", whis=(5, 95), widths=0.62, showfliers=False, tick_labels=labels
        )
        for label, box, median in zip(labels, boxes["boxes"], boxes["medians"], strict=True):
            box.set_color(data.styles[label].colour)
            median.set_color(data.styles[label].colour)
        drawing.axes.invert_yaxis()
        drawing.axes.xaxis.set_major_locator(MaxNLocator(5))
        drawing.axes.grid(visible=False, axis="y")
    medians = ", ".join(
        f"{label} {metric.format(float(np.median(found)))}" for label, found in zip(labels, values, strict=True)
    )
    title = f"{metric.label} at {acceleration}, {TITLES[metric.group]}"
    return Drawing(drawing.uri, title, f"Medians: {medians}.")


def _mean_over_seeds(seeds: Mapping[int | None, Mapping[str, Array]]) -> Array:
    """Return the mean over seeds of every value, without those that are not defined."""
    values = [np.hstack(list(files.values())) for files in seeds.values()]
    means = np.ma.masked_invalid(values).mean(axis=0)
    return np.asarray(means.compressed(), np.float64)
