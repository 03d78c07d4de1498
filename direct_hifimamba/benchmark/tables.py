"""Results as tables: CSV, Markdown, and rows for DIRECT's model zoo."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from direct_hifimamba.benchmark.results import Model, Protocol, Results, Scores, Spread, SummaryRow
from direct_hifimamba.benchmark.scores import GROUPS, METRICS, Metric
from direct_hifimamba.files import replace_when_complete

INDISTINGUISHABLE = "≈"
NOTHING = "-"

LEGEND = (
    f"In every column the best mean is **bold**. {INDISTINGUISHABLE}: not distinguishable from the best, the 95 % "
    "interval of the paired difference to it includes 0. Brackets: 95 % bootstrap interval over the test data. It does "
    "not include the variation from one training to another; see the standard deviation over seeds (seed std). p: "
    "Wilcoxon signed-rank test of the paired differences, not corrected for the number of comparisons."
)
FEW_VOLUMES_REMARK = (
    "There are few test volumes: the bootstrap draws volumes, and slices within them; standard deviations and p are "
    "over slices, which resemble each other within a volume, so that p is smaller than it should be."
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

    Its links lead to `models/<slug>.zip` and are to be replaced by those of the place where the archives are put.
    """
    means = {(row.model, row.acceleration, row.metric): row.mean for row in results.summary}
    columns = {"SSIM": ("fastmri_ssim", 3), "pSNR": ("fastmri_psnr", 1)}
    columns |= {"VIF": ("calgary_campinas_vif", 3), "NMSE": ("fastmri_nmse", 4)}
    rows = [["Model", "Name", "Acceleration", "Checkpoint", *columns]]
    for model in results.models:
        for acceleration in results.protocol.accelerations:
            scores = [means.get((model.label, acceleration, metric)) for metric, _ in columns.values()]
            if model.kind == "trained" and model.iterations is not None and any(score is not None for score in scores):
                checkpoint = f"`{model.iterations - 1} <models/{model.slug}.zip>`__"
                shown = [
                    r"\-" if score is None else f"{score:.{decimals}f}"
                    for score, (_, decimals) in zip(scores, columns.values(), strict=True)
                ]
                rows.append([model.label, model.slug, acceleration, checkpoint, *shown])
    metrics = ", ".join(f"{name}: {metric}" for name, (metric, _) in columns.items())
    table = "\n".join(f"   {'* -' if column == 0 else '  -'} {cell}" for row in rows for column, cell in enumerate(row))
    _write(path, f".. {metrics}; means over seeds.\n\n.. list-table::\n   :header-rows: 1\n\n{table}\n")


def format_budget(protocol: Protocol) -> str:
    """Such as `600 iterations`."""
    return ", ".join(f"{amount:g} {unit}" for unit, amount in protocol.budget.items())


def csv_text(summary: Iterable[SummaryRow]) -> str:
    """The summary, one line per row."""
    plain = ("mean", "std", "low", "high", "seed_std")
    differences = ("difference", "difference_to_best")
    parts = ("mean", "low", "high", "p_value")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    identity = ("model", "acceleration", "metric", "seeds", "unit", "volumes", "slices")
    writer.writerow([*identity, *plain, *(f"{name}_{part}" for name in differences for part in parts)])
    for row in summary:
        values = [getattr(row, name) for name in (*identity, *plain)]
        for name in differences:
            difference = getattr(row, name)
            values += [getattr(difference, part, None) for part in parts]
        writer.writerow(values)
    return buffer.getvalue()


def score_sections(
    models: Sequence[Model], scores: Sequence[Scores], summary: Sequence[SummaryRow], baseline: str
) -> list[str]:
    """Paragraphs and tables of the scores per acceleration, of what the models cost, and of what failed."""
    sections = [LEGEND]
    if any(row.unit == "slice" for row in summary):
        sections.append(FEW_VOLUMES_REMARK)
    for acceleration in dict.fromkeys(score.acceleration for score in scores):
        rows = {(row.model, row.metric): row for row in summary if row.acceleration == acceleration}
        sections.append(f"## {acceleration}")
        for group, meaning in GROUPS.items():
            metrics = {name: metric for name, metric in METRICS.items() if metric.group == group}
            scored = [model.label for model in models if any((model.label, name) in rows for name in metrics)]
            if scored:
                counts = {(rows[key].volumes, rows[key].slices) for key in rows if key[1] in metrics}
                sections += [
                    f"{_sentence(meaning)} {_counts(counts)}",
                    _score_table(scored, metrics, rows),
                    f"Differences to {baseline}:",
                    _difference_table([label for label in scored if label != baseline], metrics, rows),
                ]
    sections += ["## Cost", _cost_table(models)]
    failures = [score for score in scores if score.status == "failed"]
    if failures:
        sections += ["## Failures", _failure_table(failures)]
    return sections


def _score_table(labels: Sequence[str], metrics: dict[str, Metric], rows: dict[tuple[str, str], SummaryRow]) -> str:
    seeds = {label: max(rows[label, name].seeds for name in metrics if (label, name) in rows) for label in labels}
    headings = [f"{metric.heading} {'↑' if metric.higher_is_better else '↓'}" for metric in metrics.values()]
    deviations = [f"seed std, {metric.heading}" for metric in metrics.values()]
    return markdown_table(
        ["model", *headings, "seeds", *deviations],
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
    mean, low, high = (METRICS[row.metric].format(value) for value in (row.mean, row.low, row.high))
    if row.difference_to_best is None:
        return f"**{mean}** [{low}, {high}]"
    return f"{mean} [{low}, {high}]" + ("" if row.difference_to_best.is_distinguishable else f" {INDISTINGUISHABLE}")


def _seed_deviation(row: SummaryRow | None) -> str:
    return NOTHING if row is None or row.seed_std is None else METRICS[row.metric].format(row.seed_std)


def _difference_table(
    labels: Sequence[str], metrics: dict[str, Metric], rows: dict[tuple[str, str], SummaryRow]
) -> str:
    headings = [cell for metric in metrics.values() for cell in (f"difference of {metric.heading}", "p")]
    cells = [
        [
            label,
            *(cell for name in metrics for cell in _difference(rows.get((label, name)))),
        ]
        for label in labels
    ]
    return markdown_table(["model", *headings], cells)


def _difference(row: SummaryRow | None) -> tuple[str, str]:
    """Difference to the baseline with its interval, and p."""
    if row is None or row.difference is None:
        return NOTHING, NOTHING
    difference = row.difference
    mean, low, high = (
        METRICS[row.metric].format(value, "+") for value in (difference.mean, difference.low, difference.high)
    )
    p_value = difference.p_value
    return f"{mean} [{low}, {high}]", NOTHING if p_value is None else "< 0.001" if p_value < 1e-3 else f"{p_value:.3f}"


def _cost_table(models: Sequence[Model]) -> str:
    headings = ["parameters", "active per pixel", "10⁹ multiply-accumulates per slice", "iterations", "learning rate"]
    headings += ["s per iteration", "training, min", "s per slice", "peak memory, MiB"]
    return markdown_table(["model", *headings], [[model.label, *_costs(model)] for model in models])


def _costs(model: Model) -> list[str]:
    iteration = model.seconds_per_iteration
    minutes = None if iteration is None or model.iterations is None else iteration.median * model.iterations / 60
    return [
        _number(model.parameters, ",d"),
        _number(model.active_parameters, ",.0f"),
        _number(None if model.macs is None else model.macs / 1e9, ".3g"),
        _number(model.iterations, "d"),
        _number(model.learning_rate, "g"),
        _spread(iteration),
        _number(minutes, ".1f"),
        _spread(model.seconds_per_slice),
        _spread(model.peak_memory_bytes, 2**20),
    ]


def _number(value: float | None, specification: str) -> str:
    return NOTHING if value is None else f"{value:{specification}}"


def _spread(spread: Spread | None, unit: float = 1) -> str:
    if spread is None:
        return NOTHING
    median, low, high = (_significant(value / unit) for value in (spread.median, spread.low, spread.high))
    return f"{median} [{low}, {high}]"


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


def _counts(counts: Iterable[tuple[int, int]]) -> str:
    """How much was scored; more than one number where metrics or models differ in what could be scored."""
    return (
        "; ".join(f"{_count(volumes, 'volume')}, {_count(slices, 'slice')}" for volumes, slices in sorted(counts)) + "."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def join_sections(sections: Iterable[str]) -> str:
    """A document of paragraphs and tables."""
    return "\n\n".join(sections) + "\n"


def _write(path: Path, text: str) -> None:
    with replace_when_complete(path) as partial:
        partial.write_text(text, "utf-8")
