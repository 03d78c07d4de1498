"""Score against cost."""

from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from direct_hifimamba.benchmark.report.charts.chart import Drawing, ReportData, chart
from direct_hifimamba.benchmark.report.charts.style import canvas
from direct_hifimamba.benchmark.report.tables import COSTS, RANKING, CostColumn, format_engineering
from direct_hifimamba.benchmark.score.metrics import METRICS


@chart(
    title="Score against cost",
    text="Up and to the left is better. Bars: 95 % interval of the mean. The axis of the cost is logarithmic.",
)
def cost(data: ReportData) -> list[Drawing]:
    """Return a chart per acceleration and cost, with the models that have both a cost and a score."""
    charted = [cost for cost in COSTS if cost.is_charted]
    drawings = (_draw(data, name, cost) for name in data.results.protocol.accelerations for cost in charted)
    return [drawing for drawing in drawings if drawing is not None]


def _draw(data: ReportData, acceleration: str, cost: CostColumn) -> Drawing | None:
    metric, key = METRICS[RANKING], (acceleration, RANKING)
    rows = {row.model: row for row in data.results.summary if (row.acceleration, row.metric) == key}
    costs = {model.label: found for model in data.results.models if model.label in rows and (found := cost.of(model))}
    if not costs:
        return None
    with canvas(cost.label, metric.heading) as drawing:
        axes = drawing.axes
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
        axes.xaxis.set_major_formatter(EngFormatter(cost.unit))
        axes.xaxis.set_minor_locator(NullLocator())
    words = (
        f"{label} {format_engineering(value, cost.unit)} and {metric.format(rows[label].mean)}"
        for label, value in costs.items()
    )
    title = f"{metric.label} against {cost.label} at {acceleration}"
    return Drawing(drawing.uri, title, f"{', '.join(words)}.")
