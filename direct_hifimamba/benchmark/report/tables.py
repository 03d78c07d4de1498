"""Results as tables: CSV, Markdown, and rows for DIRECT's model zoo."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from direct_hifimamba.benchmark.score.results import Model, Protocol, Results, Scores, Spread, SummaryRow
from direct_hifimamba.benchmark.score.scores import GROUPS, METRICS, Metric
from direct_hifimamba.benchmark.score.statistics import MIN_SUBJECTS, Difference
from direct_hifimamba.files import replace_when_complete

INDISTINGUISHABLE = "≈"
NOTHING = "-"
EDGE = "(edge)"

TIES = (
    f"{INDISTINGUISHABLE} marks means for which no significant difference to the best was shown: the 95 % interval of "
    "the paired difference over subjects or that over seeds (both Student's t) includes 0, or there are fewer than "
    f"{MIN_SUBJECTS} subjects or a single seed."
)
UNCERTAINTY = (
    "The unit is the subject: its volumes are averaged first. Intervals are 95 % intervals over test subjects: they do "
    "not include the variation from one training to another, which the standard deviation over seeds (seed std) shows. "
    "p: Wilcoxon signed-rank test of the paired differences of subjects, not corrected for the number of comparisons."
)
LEGEND = f"In every column the best mean is **bold**. {TIES} Brackets: intervals. {UNCERTAINTY}"
COMPARISON = (
    "DIRECT's fastMRI metrics. ±: seed std, where there are several seeds. Δ: paired difference with its interval; "
    f"{INDISTINGUISHABLE}: no significant difference, in the above sense."
)
COST_REMARK = (
    "Times are medians with their lowest and highest value, peak memory is measured once, and the time of the whole "
    "training is an estimate: the median time per iteration times the number of iterations. "
    f"{EDGE}: the best learning rate is the lowest or highest that was searched, so a better one may lie beyond."
)


def write_csv(path: Path, results: Results) -> None:
    """Write one line per model, acceleration and metric; differences are this model minus the other one."""
    _write(path, csv_text(results.summary))


def write_markdown(path: Path, results: Results) -> None:
    """Write the tables that people read."""
    protocol, provenance = results.protocol, results.provenance
    seeds = ", ".join(map(str, protocol.seeds))
    sections = [
        f"# {results.name}",
        results.description,
        f"Test data: {_count(len(protocol.data.files), 'volume')}, {_count(protocol.data.slices, 'slice')} "
        f"({protocol.data.origin}). Training: {format_budget(protocol)} for every model, {protocol.schedule} schedule "
        f"of the learning rate, {'seeds' if len(protocol.seeds) > 1 else 'seed'} {seeds}; scores are averaged over "
        f"seeds. Written {results.created} on {provenance.host} with {_count(provenance.threads, 'thread')}.",
        *score_sections(results.models, results.scores, results.summary, results.baseline),
    ]
    _write(path, join_sections(sections))


def write_model_zoo(path: Path, results: Results) -> None:
    """Write a table in the form of DIRECT's model zoo: a row per trained model and acceleration.

    The scores are those of the checkpoint that is offered, which is that of the first seed that finished. The links
    lead to `models/<slug>.zip` and are to be replaced by those of the place where the archives are put.
    """
    columns = {"SSIM": ("fastmri_ssim", 3), "pSNR": ("fastmri_psnr", 1)}
    columns |= {"VIF": ("calgary_campinas_vif", 3), "NMSE": ("fastmri_nmse", 4)}
    rows = [["Model", "Name", "Acceleration", "Checkpoint", *columns]]
    for model in results.models:
        for acceleration in results.protocol.accelerations:
            offered = next((score for score in results.scores if _is_offered(score, model, acceleration)), None)
            if model.iterations is not None and offered is not None:
                checkpoint = f"`{model.iterations - 1} <models/{model.slug}.zip>`__ (seed {offered.seed})"
                means = [_mean_of_volumes(offered, metric, decimals) for metric, decimals in columns.values()]
                rows.append([model.label, model.slug, acceleration, checkpoint, *means])
    metrics = ", ".join(f"{name}: {metric}" for name, (metric, _) in columns.items())
    table = "\n".join(f"   {'* -' if column == 0 else '  -'} {cell}" for row in rows for column, cell in enumerate(row))
    _write(path, f".. {metrics}; of the seed that is named.\n\n.. list-table::\n   :header-rows: 1\n\n{table}\n")


def _is_offered(score: Scores, model: Model, acceleration: str) -> bool:
    is_trained = score.seed is not None and score.status == "finished"
    return is_trained and (score.model, score.acceleration) == (model.label, acceleration)


def _mean_of_volumes(score: Scores, metric: str, decimals: int) -> str:
    values = [value for volume in score.volumes.values() if (value := volume[metric]) is not None]
    return f"{fmean(values):.{decimals}f}" if values else r"\-"


def format_budget(protocol: Protocol) -> str:
    """Such as `600 iterations`."""
    return ", ".join(f"{amount:g} {unit}" for unit, amount in protocol.budget.items())


def csv_text(summary: Iterable[SummaryRow], budgets: Sequence[str] | None = None) -> str:
    """The summary, one line per row; with a column of budgets in front if they are given, one per row."""
    plain = ("mean", "std", "low", "high", "seed_std", "singles")
    differences = ("difference", "difference_to_best")
    parts = ("mean", "low", "high", "p_value", "seed_std", "seeds", "singles")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    identity = ("model", "acceleration", "metric", "seeds", "unit", "groups", "volumes", "slices")
    header = [*identity, *plain, *(f"{name}_{part}" for name in differences for part in parts)]
    writer.writerow(header if budgets is None else ["budget", *header])
    for index, row in enumerate(summary):
        values: list[Any] = [] if budgets is None else [budgets[index]]
        values += [getattr(row, name) for name in (*identity, *plain)]
        for name in differences:
            difference = getattr(row, name)
            values += [getattr(difference, part, None) for part in parts]
        writer.writerow([" ".join(map(str, value)) if isinstance(value, list) else value for value in values])
    return buffer.getvalue()


def score_sections(
    models: Sequence[Model], scores: Sequence[Scores], summary: Sequence[SummaryRow], baseline: str
) -> list[str]:
    """Paragraphs and tables of the scores per acceleration, of what the models cost, and of what failed."""
    sections = [LEGEND, *groups_remark(summary)]
    for acceleration in dict.fromkeys(score.acceleration for score in scores):
        rows = {(row.model, row.metric): row for row in summary if row.acceleration == acceleration}
        sections += [f"## {acceleration}", f"Compared with {baseline}. {COMPARISON}", _comparison_table(models, rows)]
        for group, meaning in GROUPS.items():
            metrics = {name: metric for name, metric in METRICS.items() if metric.group == group}
            scored = [model.label for model in models if any((model.label, name) in rows for name in metrics)]
            if scored:
                counts = {(rows[key].volumes, rows[key].groups, rows[key].slices) for key in rows if key[1] in metrics}
                sections += [
                    f"{_sentence(meaning)} {_counts(counts)}",
                    _score_table(scored, metrics, rows),
                    f"Differences to {baseline}:",
                    _difference_table([label for label in scored if label != baseline], metrics, rows),
                ]
    sections += ["## Cost", COST_REMARK, _cost_table(models)]
    failures = [score for score in scores if score.status == "failed"]
    if failures:
        sections += ["## Failures", _failure_table(failures)]
    return sections


def groups_remark(summary: Iterable[SummaryRow]) -> list[str]:
    """What stands in the place of intervals where subjects are too few for them."""
    counts = sorted({row.groups for row in summary if row.low is None})
    if not counts:
        return []
    return [
        f"The test volumes are of {' or '.join(map(str, counts))} {_noun(counts[-1], 'subject')}. Fewer than "
        f"{MIN_SUBJECTS} have no interval and no p; the values of the single subjects stand in braces."
    ]


def _with_interval(row: SummaryRow | Difference, metric: Metric, sign: str = "") -> str:
    """A mean and its interval in brackets, or the values of the single subjects in braces."""
    mean = metric.format(row.mean, sign)
    if row.low is None or row.high is None:
        return f"{mean} {{{', '.join(metric.format(value, sign) for value in row.singles)}}}"
    return f"{mean} [{metric.format(row.low, sign)}, {metric.format(row.high, sign)}]"


def _comparison_table(models: Sequence[Model], rows: dict[tuple[str, str], SummaryRow]) -> str:
    """Cost, scores and differences of every model that was scored, in one row."""
    metrics = {name: metric for name, metric in METRICS.items() if metric.group == next(iter(GROUPS))}
    headings = [cell for metric in metrics.values() for cell in (_heading(metric), f"Δ {metric.label}")]
    return markdown_table(
        ["model", "parameters", "training, min", "s per slice", *headings],
        [
            [
                model.label,
                _number(model.parameters, ",d"),
                _number(model.training_minutes, ".1f"),
                NOTHING if model.seconds_per_slice is None else _significant(model.seconds_per_slice.median),
                *(cell for name in metrics for cell in _compared(rows.get((model.label, name)))),
            ]
            for model in models
            if any((model.label, name) in rows for name in metrics)
        ],
    )


def _compared(row: SummaryRow | None) -> tuple[str, str]:
    """Mean with its standard deviation over seeds, and difference to the baseline with its interval."""
    if row is None:
        return NOTHING, NOTHING
    metric, difference = METRICS[row.metric], row.difference
    mean = metric.format(row.mean)
    score = f"**{mean}**" if row.difference_to_best is None else mean
    if row.seed_std is not None:
        score += f" ± {metric.format(row.seed_std)}"
    if difference is None:
        return score, NOTHING
    tie = "" if difference.is_distinguishable else f" {INDISTINGUISHABLE}"
    return score, f"{_with_interval(difference, metric, '+')}{tie}"


def _heading(metric: Metric) -> str:
    return f"{metric.heading} {'↑' if metric.higher_is_better else '↓'}"


def _score_table(labels: Sequence[str], metrics: dict[str, Metric], rows: dict[tuple[str, str], SummaryRow]) -> str:
    seeds = {label: max(rows[label, name].seeds for name in metrics if (label, name) in rows) for label in labels}
    deviations = [f"seed std, {metric.heading}" for metric in metrics.values()]
    return markdown_table(
        ["model", *map(_heading, metrics.values()), "seeds", *deviations],
        [
            [
                label,
                *(format_score(rows.get((label, name))) for name in metrics),
                str(seeds[label]),
                *(_seed_deviation(rows.get((label, name))) for name in metrics),
            ]
            for label in labels
        ],
    )


def format_score(row: SummaryRow | None) -> str:
    """Mean with its interval, marked as `LEGEND` says."""
    if row is None:
        return NOTHING
    mean, _, interval = _with_interval(row, METRICS[row.metric]).partition(" ")
    if row.difference_to_best is None:
        return f"**{mean}** {interval}"
    return f"{mean} {interval}" + ("" if row.difference_to_best.is_distinguishable else f" {INDISTINGUISHABLE}")


def _seed_deviation(row: SummaryRow | None) -> str:
    return NOTHING if row is None or row.seed_std is None else METRICS[row.metric].format(row.seed_std)


def _difference_table(
    labels: Sequence[str], metrics: dict[str, Metric], rows: dict[tuple[str, str], SummaryRow]
) -> str:
    headings = [cell for metric in metrics.values() for cell in (f"difference of {metric.heading}", "seed std", "p")]
    cells = [
        [
            label,
            *(cell for name in metrics for cell in _difference(rows.get((label, name)))),
        ]
        for label in labels
    ]
    return markdown_table(["model", *headings], cells)


def _difference(row: SummaryRow | None) -> tuple[str, str, str]:
    """Difference to the baseline with its interval, its standard deviation over seeds, and p."""
    if row is None or row.difference is None:
        return NOTHING, NOTHING, NOTHING
    difference, metric = row.difference, METRICS[row.metric]
    seed_std = NOTHING if difference.seed_std is None else metric.format(difference.seed_std)
    p_value = difference.p_value
    p = NOTHING if p_value is None else "< 0.001" if p_value < 1e-3 else f"{p_value:.3f}"
    return _with_interval(difference, metric, "+"), seed_std, p


def _cost_table(models: Sequence[Model]) -> str:
    headings = ["parameters", "active per pixel", "10⁹ multiply-accumulates per slice", "iterations", "learning rate"]
    headings += ["s per iteration", "training, min (estimated)", "s per slice", "peak memory, MiB"]
    return markdown_table(["model", *headings], [[model.label, *_costs(model)] for model in models])


def _costs(model: Model) -> list[str]:
    return [
        _number(model.parameters, ",d"),
        _number(model.active_parameters, ",.0f"),
        _number(None if model.macs is None else model.macs / 1e9, ".3g"),
        _number(model.iterations, "d"),
        _number(model.learning_rate, "g") + (f" {EDGE}" if model.is_at_edge else ""),
        _spread(model.seconds_per_iteration),
        _number(model.training_minutes, ".1f"),
        _spread(model.seconds_per_slice),
        _spread(model.peak_memory_bytes, 2**20),
    ]


def _number(value: float | None, specification: str) -> str:
    return NOTHING if value is None else f"{value:{specification}}"


def _spread(spread: Spread | None, unit: float = 1) -> str:
    if spread is None:
        return NOTHING
    median, low, high = (_significant(value / unit) for value in (spread.median, spread.low, spread.high))
    return f"{median} [{low}, {high}]" if spread.low < spread.high else median


def _significant(value: float) -> str:
    """Three digits, but no power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _failure_table(failures: Iterable[Scores]) -> str:
    return markdown_table(
        ["model", "acceleration", "seed", "reason"],
        [
            [
                score.model,
                score.acceleration,
                NOTHING if score.seed is None else str(score.seed),
                " ".join((score.error or "unknown").split()),
            ]
            for score in failures
        ],
        text_columns=4,
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns, `text_columns` of them, are text, and the others numbers."""
    alignment = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    lines = [list(header), alignment, *([*map(_escape, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(cell: str) -> str:
    return cell.replace("|", r"\|")


def _counts(counts: Iterable[tuple[int, int, int]]) -> str:
    """Volumes, subjects and slices that were scored; several times where metrics or models differ in them."""
    scored = (
        f"{_count(volumes, 'volume')}{'' if groups == volumes else f' in {_count(groups, "subject")}'}, "
        f"{_count(slices, 'slice')}"
        for volumes, groups, slices in sorted(counts)
    )
    return "; ".join(scored) + "."


def _count(number: int, noun: str) -> str:
    return f"{number} {_noun(number, noun)}"


def _noun(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def join_sections(sections: Iterable[str]) -> str:
    """A document of paragraphs and tables."""
    return "\n\n".join(sections) + "\n"


def _write(path: Path, text: str) -> None:
    with replace_when_complete(path) as partial:
        partial.write_text(text, "utf-8")
