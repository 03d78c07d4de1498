"""Tables of results: each is made once, and rendered as Markdown here and as HTML by the page."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from matplotlib.ticker import EngFormatter

from direct_hifimamba.benchmark.score.metrics import GROUPS, METRICS, Metric
from direct_hifimamba.benchmark.score.results import Failure, Model, Protocol, Results, Spread
from direct_hifimamba.benchmark.score.statistics import MIN_SUBJECTS, Difference
from direct_hifimamba.benchmark.score.summary import SummaryRow
from direct_hifimamba.files import write_text

TIE = "≈"
NOTHING = "-"
NO_BREAK = "\N{NO-BREAK SPACE}"
EDGE = "(edge)"
RANKING = "fastmri_psnr"
"""The metric by which tables are sorted, and slices are chosen."""

TIES = (
    f"{TIE} marks means for which no significant difference to the best was shown: the 95 % interval of the paired "
    "difference over subjects or that over seeds (both Student's t) includes 0, or there are fewer than "
    f"{MIN_SUBJECTS} subjects or a single seed."
)
UNCERTAINTY = (
    "The unit is the subject: its volumes are averaged first. Intervals are 95 % intervals over test subjects: they do "
    "not include the variation from one training to another, which the standard deviation over seeds shows. "
    "p: Wilcoxon signed-rank test of the paired differences of subjects, not corrected for the number of comparisons."
)
COST_REMARK = (
    "Times are medians with their lowest and highest value, peak memory is measured once, and the time of the whole "
    "training is an estimate: the median time per iteration times the number of iterations. "
    f"{EDGE}: the best learning rate is the lowest or highest that was searched, so a better one may lie beyond."
)


@dataclass(frozen=True)
class Cell:
    """A number or text, its interval, and what HTML shows on demand."""

    text: str = NOTHING
    interval: str = ""
    details: tuple[str, ...] = ()
    mark: Literal["", "best", "tied"] = ""

    def to_markdown(self) -> str:
        """Return the cell without its details."""
        text = f"**{self.text}**" if self.mark == "best" else self.text
        return " ".join(filter(None, (text, self.interval, TIE * (self.mark == "tied")))).replace("|", r"\|")


@dataclass(frozen=True)
class Table:
    """A table; its first column has the headings of the rows, and its first `texts` columns have no numbers."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1

    def to_markdown(self) -> str:
        """Return the table without its caption."""
        alignment = ["---" if index < self.texts else "---:" for index in range(len(self.headings))]
        lines = [self.headings, alignment, *([cell.to_markdown() for cell in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score_tables(results: Results, acceleration: str) -> dict[str, list[Table]]:
    """Return for every group of metrics with scores a table of means and one of differences to the baseline."""
    baseline = results.baseline
    rows = {(row.model, row.metric): row for row in results.summary if row.acceleration == acceleration}
    tables = {}
    for group in GROUPS:
        names = [name for name in METRICS if METRICS[name].group == group and any(key[1] == name for key in rows)]
        if names:
            chosen = RANKING if RANKING in names else names[0]
            labels = _ranked([model.label for model in results.models], rows, chosen)
            others = [label for label in labels if label != baseline and (label, chosen) in rows]
            title = f"{group} at {acceleration}"
            tables[group] = [
                _metric_table(f"{title}: mean over subjects and seeds", labels, names, rows, score_cell),
                _metric_table(f"{title}: difference to {baseline}", others, names, rows, _difference_cell),
            ]
    return tables


def _ranked(labels: Sequence[str], rows: dict[tuple[str, str], SummaryRow], metric: str) -> list[str]:
    """Return labels, best first; last those without a score."""
    sign = -1 if METRICS[metric].higher_is_better else 1
    means = {label: row.mean for label in labels if (row := rows.get((label, metric))) is not None}
    return sorted(labels, key=lambda label: (label not in means, sign * means.get(label, 0)))


def _metric_table(
    caption: str,
    labels: Sequence[str],
    names: Sequence[str],
    rows: dict[tuple[str, str], SummaryRow],
    make_cell: Callable[[SummaryRow | None], Cell],
) -> Table:
    headings = [f"{METRICS[name].heading} {'↑' if METRICS[name].higher_is_better else '↓'}" for name in names]
    lines = []
    for label in labels:
        seeds = max((rows[label, name].seeds for name in names if (label, name) in rows), default=0)
        lines.append([Cell(label), *(make_cell(rows.get((label, name))) for name in names), Cell(str(seeds))])
    return Table(caption, ["model", *headings, "seeds"], lines)


def score_cell(row: SummaryRow | None) -> Cell:
    """Return a mean with its interval and mark; an empty cell without one."""
    if row is None:
        return Cell()
    metric, best = METRICS[row.metric], row.difference_to_best
    details = [
        f"standard deviation over subjects {_format(metric, row.std)}",
        f"over {row.seeds} seeds {_format(metric, row.seed_std)}",
        f"subjects: {row.subjects}, volumes: {row.volumes}, slices: {row.slices}",
    ]
    mark: Literal["best", "tied", ""] = "best" if best is None else "" if best.is_distinguishable else "tied"
    return Cell(metric.format(row.mean), _interval(row, metric), tuple(details), mark)


def _difference_cell(row: SummaryRow | None) -> Cell:
    if row is None or row.difference is None:
        return Cell()
    difference, metric = row.difference, METRICS[row.metric]
    p = difference.p_value
    details = [
        f"standard deviation over seeds {_format(metric, difference.seed_std)}",
        "no p-value" if p is None else "p < 0.001" if p < 1e-3 else f"p = {p:.3f}",
    ]
    mark: Literal["tied", ""] = "" if difference.is_distinguishable else "tied"
    return Cell(metric.format(difference.mean, "+"), _interval(difference, metric, "+"), tuple(details), mark)


def _format(metric: Metric, value: float | None) -> str:
    return "not known" if value is None else metric.format(value)


def _interval(row: SummaryRow | Difference, metric: Metric, sign: str = "") -> str:
    """Return the interval in brackets, or the values of the single subjects in braces."""
    if row.low is None or row.high is None:
        return f"{{{', '.join(metric.format(value, sign) for value in row.singles)}}}"
    return f"[{metric.format(row.low, sign)}, {metric.format(row.high, sign)}]"


def groups_remark(summary: Iterable[SummaryRow]) -> list[str]:
    """Return what is said where there are too few subjects for intervals."""
    counts = sorted({row.subjects for row in summary if row.low is None})
    if not counts:
        return []
    return [
        f"Number of subjects of the test volumes: {' or '.join(map(str, counts))}. Fewer than "
        f"{MIN_SUBJECTS} have no interval and no p; the values of the single subjects stand in braces."
    ]


@dataclass(frozen=True)
class CostColumn:
    """A column of the cost table: attribute of `Cost`, name and unit; and whether it has a chart."""

    attribute: str
    label: str
    unit: str = ""
    is_charted: bool = True

    def of(self, model: Model) -> float | None:
        """Return the cost of a model; the median, where it was measured repeatedly."""
        value = getattr(model.cost, self.attribute, None)
        return value.median if isinstance(value, Spread) else value

    def cell(self, model: Model) -> Cell:
        """Return the cost of a model, with the lowest and highest value where it was measured repeatedly."""
        value = getattr(model.cost, self.attribute, None)
        if value is None:
            return Cell()
        if not isinstance(value, Spread):
            return Cell(format_engineering(value, self.unit))
        ends = (format_engineering(end, self.unit).replace(" ", NO_BREAK) for end in (value.low, value.high))
        return Cell(format_engineering(value.median, self.unit), f"[{', '.join(ends)}]")


COSTS = (
    CostColumn("parameters", "parameters"),
    CostColumn("active_parameters", "active parameters per pixel", is_charted=False),
    CostColumn("macs", "multiply-accumulates per slice"),
    CostColumn("seconds_per_slice", "time per slice", "s"),
    CostColumn("seconds_per_iteration", "time per training iteration", "s"),
    CostColumn("peak_memory_bytes", "peak memory in training", "B", is_charted=False),
)


def cost_table(models: Iterable[Model]) -> Table:
    """Return what the models cost."""
    headings = ["model", *(cost.label for cost in COSTS), "iterations", "training, min (estimated)", "learning rate"]
    rows = []
    for model in models:
        minutes, rate = model.training_minutes, model.learning_rate
        rows.append(
            [
                Cell(model.label),
                *(cost.cell(model) for cost in COSTS),
                Cell() if model.iterations is None else Cell(str(model.iterations)),
                Cell() if minutes is None else Cell(f"{minutes:.1f}"),
                Cell() if rate is None else Cell(f"{rate:g}{f' {EDGE}' if model.is_at_edge else ''}"),
            ]
        )
    return Table("What the models cost.", headings, rows)


def search_table(models: Iterable[Model]) -> Table:
    """Return the scores of the learning rates that were tried."""
    rows, headings = [], ["model"]
    for model in models:
        if model.search:
            headings = ["model", *(f"{trial.learning_rate:g}" for trial in model.search)]  # the same for all
            scores = ["failed" if trial.score is None else f"{trial.score:.4g}" for trial in model.search]
            is_best = [trial.learning_rate == model.learning_rate for trial in model.search]
            cells = [Cell(score, mark="best" if best else "") for score, best in zip(scores, is_best, strict=True)]
            rows.append([Cell(model.label), *cells])
    return Table("Scores of learning rates on the validation split.", headings, rows)


def failure_table(failures: Iterable[Failure]) -> Table:
    """Return which runs failed, and why."""
    texts = [(failure.model, str(failure.seed), " ".join(failure.error.split())) for failure in failures]
    return Table("Failures", ("model", "seed", "reason"), [list(map(Cell, row)) for row in texts], texts=3)


def format_engineering(value: float, unit: str = "") -> str:
    """Return up to three digits and a prefix.

    >>> format_engineering(164320), format_engineering(0.0213, "s")
    ('164 k', '21.3 ms')
    """
    return EngFormatter(unit)(float(f"{value:.3g}")).strip()


def format_budget(protocol: Protocol) -> str:
    """Return the budget, such as `600 iterations`."""
    return ", ".join(f"{amount:g} {unit}" for unit, amount in protocol.budget.items())


def write_csv(path: Path, results: Results) -> None:
    """Write one line per model, acceleration and metric; differences are this model minus the other one."""
    write_text(path, csv_text([csv_row(row) for row in results.summary]))


def csv_row(row: SummaryRow) -> dict[str, Any]:
    """Return the numbers of a row by the names of their columns, which are the same for all rows."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(row)):
        value = getattr(row, name)
        if name.startswith("difference"):
            values |= {f"{name}_{part.name}": getattr(value, part.name, None) for part in fields(Difference)}
        else:
            values[name] = value
    return {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with equal columns as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_markdown(path: Path, results: Results) -> None:
    """Write the tables that people read."""
    protocol, provenance = results.protocol, results.provenance
    seeds = ", ".join(map(str, protocol.seeds))
    sections = [
        f"# {results.name}",
        results.description,
        f"Test volumes: {len(protocol.data.files)}, with {protocol.data.slices} slices ({protocol.data.origin}). "
        f"Training: {format_budget(protocol)} for every model, learning-rate schedule: {protocol.schedule}, seeds: "
        f"{seeds}; scores are averaged over seeds. Written {results.created} on {provenance.host}, threads: "
        f"{provenance.threads}.",
        *score_sections(results),
    ]
    write_text(path, join_sections(sections))


def score_sections(results: Results) -> list[str]:
    """Return paragraphs and tables of the scores per acceleration, of what the models cost, and of what failed."""
    legend = (
        f"In every column the best mean is **bold**. {TIES} Brackets: intervals. {UNCERTAINTY} Standard deviations and "
        "p are in the CSV file."
    )
    sections = [legend, *groups_remark(results.summary)]
    for acceleration in dict.fromkeys(row.acceleration for row in results.summary):
        sections.append(f"## {acceleration}")
        for group, (scores, differences) in score_tables(results, acceleration).items():
            sections += [f"{GROUPS[group][0].upper()}{GROUPS[group][1:]}.", scores.to_markdown()]
            sections += [f"Differences to {results.baseline}; {TIE}: not significant.", differences.to_markdown()]
    sections += ["## Cost", COST_REMARK, cost_table(results.models).to_markdown()]
    if results.failures:
        sections += ["## Failures", failure_table(results.failures).to_markdown()]
    return sections


def join_sections(sections: Iterable[str]) -> str:
    """Return a document of paragraphs and tables."""
    return "\n\n".join(sections) + "\n"
