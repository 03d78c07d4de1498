"""Scores of slices and volumes."""

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import MaxNLocator

from direct_hifimamba.benchmark.report.charts.chart import Drawing, ReportData, chart, mean_and_interval
from direct_hifimamba.benchmark.report.charts.style import canvas
from direct_hifimamba.benchmark.report.tables import TITLES
from direct_hifimamba.benchmark.score.metric import Array
from direct_hifimamba.benchmark.score.metrics import METRICS


@chart(
    title="Distributions",
    text="Coloured box: quartiles of the slices, with whiskers to the 5th and 95th percentile. Dots below it: volumes. "
    "Diamond and bar: mean and its 95 % interval. Every value is the mean over the seeds. Only trained models are "
    "shown.",
    has_legend=False,
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
    metric, rows = METRICS[name], data.rows(acceleration, name)
    with canvas(metric.heading, height=0.65 + 0.34 * len(labels)) as drawing:
        axes = drawing.axes
        for row, label in enumerate(labels):
            colour = data.styles[label].colour
            line = {"color": colour, "linewidth": 1.3}
            slices, volumes = (
                _mean_over_seeds(find(label, acceleration, name)) for find in (data.scores.slices, data.scores.volumes)
            )
            axes.boxplot(
                [slices],
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
            axes.plot(volumes, [row + 0.4] * len(volumes), "o", markersize=3, color=colour)
            mean, low, high = mean_and_interval(rows[label])
            axes.plot([low, high], [row, row], color="black", linewidth=3, solid_capstyle="butt")
            axes.plot([mean], [row], "D", color="black", markersize=4.5)
        axes.set_yticks(range(len(labels)), labels)
        for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
            tick.set_fontweight("bold" if data.styles[label].highlighted else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.35, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="y")
    means = ", ".join(f"{label} {metric.format(rows[label].mean)}" for label in labels)
    return Drawing(drawing.uri, labels, f"{metric.label} at {acceleration}, {TITLES[metric.group]}", f"Means: {means}.")


def _mean_over_seeds(seeds: Mapping[int | None, Mapping[str, Array | float]]) -> Array:
    """Return the mean over seeds of every value, without those that are not defined."""
    values = [np.hstack(list(files.values())) for files in seeds.values()]
    means = np.ma.masked_invalid(values).mean(axis=0)
    return np.asarray(means.compressed(), np.float64)
