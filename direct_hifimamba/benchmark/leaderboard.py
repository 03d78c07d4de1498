"""Tables of the models of several benchmarks that used the same data, masks, loss, evaluation and metrics.

Only models with equal budgets are ranked, and compared, with each other: there is one table for every budget.
"""

import math
import reprlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from direct_hifimamba.benchmark.plan.configurations import find_difference
from direct_hifimamba.benchmark.report.tables import (
    NOTHING,
    csv_text,
    format_budget,
    format_score,
    join_sections,
    markdown_table,
    score_sections,
)
from direct_hifimamba.benchmark.score.results import Model, Results, Scores, SummaryRow, summarise_scores
from direct_hifimamba.benchmark.score.scores import METRICS, metric_definitions
from direct_hifimamba.files import replace_when_complete

RANKED_BY = "fastmri_ssim"
SHOWN = ("fastmri_ssim", "fastmri_psnr", "fastmri_nmse")
SAME_SCORE = 1e-3
"""Relative difference between machines that a classical reconstruction may have."""


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard: a model, its scores, and the name and budget of the benchmark that they come from."""

    model: Model
    scores: list[Scores]
    source: str
    budget: str


def merge(results: dict[str, Results]) -> list[Entry]:
    """Put the models of several benchmarks side by side.

    A classical reconstruction that has the same scores everywhere stays one row. Other models that have a label in
    common get the name of their results behind it.

    Parameters
    ----------
    results : dict
        By a name of each, such as its path.

    Raises
    ------
    ValueError
        If they do not have the same protocol, or not the metrics of this version.
    """
    _check_protocols(results)
    entries: list[Entry] = []
    for source, result in results.items():
        for model in result.models:
            scores = [score for score in result.scores if score.model == model.label]
            budget = format_budget(result.protocol) if model.kind == "trained" else NOTHING
            entry = Entry(model, scores, source, budget)
            if not any(_is_same_classical(entry, other) for other in entries):
                entries.append(entry)
    labels = Counter(entry.model.label for entry in entries)
    return [_name_source(entry) if labels[entry.model.label] > 1 else entry for entry in entries]


def _check_protocols(results: dict[str, Results]) -> None:
    (first_name, first), *others = results.items()
    expected = first.protocol.comparable
    for name, result in others:
        found = result.protocol.comparable
        differences = [find_difference(expected[aspect], found[aspect], aspect) for aspect in expected]
        described = [
            f"{path} ({reprlib.repr(value)} and {reprlib.repr(other)})"
            for path, value, other in filter(None, differences)
        ]
        if described:
            raise ValueError(
                f"{first_name} and {name} cannot stand in one table: they differ in {', '.join(described)}. Run both "
                "benchmarks on the same prepared data, with the same version, and with the same configs but for the "
                "models."
            )
    if first.protocol.metrics != metric_definitions():
        raise ValueError(
            f"{first_name} has other metrics than this version of direct-hifimamba; run its benchmark again, which "
            "scores anew and does not train again."
        )


def _is_same_classical(entry: Entry, other: Entry) -> bool:
    if entry.model.kind != "classical" or (entry.model.label, entry.model.kind) != (
        other.model.label,
        other.model.kind,
    ):
        return False
    ours, theirs = (
        {
            (score.acceleration, file, metric): value
            for score in one.scores
            for file, volume in score.volumes.items()
            for metric, value in volume.items()
        }
        for one in (entry, other)
    )
    return ours.keys() == theirs.keys() and all(_is_close(ours[key], theirs[key]) for key in ours)


def _is_close(value: float | None, other: float | None) -> bool:
    if value is None or other is None:
        return value is other
    return math.isclose(value, other, rel_tol=SAME_SCORE)


def _name_source(entry: Entry) -> Entry:
    label = f"{entry.model.label} ({entry.source})"
    return replace(
        entry,
        model=replace(entry.model, label=label),
        scores=[replace(score, model=label) for score in entry.scores],
    )


def rank(entries: Sequence[Entry], summary: Sequence[SummaryRow]) -> list[Entry]:
    """Best first, by the mean of `RANKED_BY` over accelerations; last the models without scores at one of them."""
    accelerations = {row.acceleration for row in summary}

    def key(entry: Entry) -> tuple[bool, float]:
        means = [row.mean for row in summary if (row.model, row.metric) == (entry.model.label, RANKED_BY)]
        return len(means) < len(accelerations), -fmean(means) if means else 0

    return sorted(entries, key=key)


@dataclass(frozen=True)
class Board:
    """The models of one budget and the classical reconstructions, best first, with their scores."""

    budget: str
    baseline: str
    entries: list[Entry]
    summary: list[SummaryRow]


def make_boards(entries: Sequence[Entry], results: dict[str, Results], baseline: str | None) -> list[Board]:
    """One for every budget, in the order in which the results have them.

    Differences are taken to `baseline` if it is a model of that budget, and otherwise to the baseline of the first
    results of that budget.

    Raises
    ------
    ValueError
        If no model has the label `baseline`.
    """
    labels = [entry.model.label for entry in entries]
    if baseline is not None and baseline not in labels:
        raise ValueError(f"There is no model {baseline!r} to take differences to; expected one of {', '.join(labels)}.")
    groups = {file: group for result in results.values() for file, group in result.protocol.data.groups.items()}
    sources: dict[str, dict[str, Results]] = {}
    for source, result in results.items():
        sources.setdefault(format_budget(result.protocol), {})[source] = result
    boards = []
    for budget, of_budget in sources.items():
        chosen = [entry for entry in entries if entry.budget in (budget, NOTHING)]
        is_there = baseline in [entry.model.label for entry in chosen]
        own = baseline if baseline is not None and is_there else _find_baseline(chosen, of_budget)
        summary = summarise_scores([score for entry in chosen for score in entry.scores], own, groups)
        boards.append(Board(budget, own, rank(chosen, summary), summary))
    return boards


def to_markdown(results: dict[str, Results], boards: Sequence[Board]) -> str:
    """The leaderboards, and all that the single benchmarks show."""
    metric = METRICS[RANKED_BY]
    ranking = (
        f"Ranked by the mean {metric.label} ({RANKED_BY}) over accelerations, among models of one budget. Models of "
        "different budgets are not ranked with each other."
    )
    sources = markdown_table(
        ["results", "name", "budget", "seeds", "written", "host"],
        [
            [
                source,
                result.name,
                format_budget(result.protocol),
                ", ".join(map(str, result.protocol.seeds)),
                result.created,
                result.provenance.host,
            ]
            for source, result in results.items()
        ],
        text_columns=6,
    )
    sections = ["# Leaderboard", ranking]
    for board in boards:
        sections += [f"## Budget: {board.budget}", _ranking_table(board)]
    sections += ["Times and memory can be compared only between models that were measured on one host.", sources]
    for board in boards:
        models = [entry.model for entry in board.entries]
        scores = [score for entry in board.entries for score in entry.scores]
        sections += [f"# Scores with a budget of {board.budget}"] * (len(boards) > 1)
        sections += score_sections(models, scores, board.summary, board.baseline)
    return join_sections(sections)


def _ranking_table(board: Board) -> str:
    accelerations = list(dict.fromkeys(row.acceleration for row in board.summary))
    rows = {(row.model, row.acceleration, row.metric): row for row in board.summary}
    columns = [(acceleration, name) for acceleration in accelerations for name in SHOWN]
    return markdown_table(
        ["rank", "model", *(f"{METRICS[name].heading}, {acceleration}" for acceleration, name in columns)],
        [
            [
                str(position),
                entry.model.label,
                *(format_score(rows.get((entry.model.label, acceleration, name))) for acceleration, name in columns),
            ]
            for position, entry in enumerate(board.entries, 1)
        ],
        text_columns=2,
    )


def write_leaderboard(paths: Sequence[Path], output: Path | None = None, baseline: str | None = None) -> None:
    """Merge results of benchmarks into one table.

    Parameters
    ----------
    paths : sequence of Path
        Files `results.json`.
    output : Path, optional
        File .md or .csv to write. Default: Markdown on standard output.
    baseline : str, optional
        Label of the model to take differences to, see :func:`make_boards`.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ValueError
        If results cannot be merged, or there is no such model.
    """
    if output is not None and output.suffix not in (".md", ".csv"):
        raise ValueError(f"The output is {output}; expected a name that ends in .md or .csv.")
    results = {str(path): Results.load(path) for path in paths}
    boards = make_boards(merge(results), results, baseline)
    if output is None:
        sys.stdout.write(to_markdown(results, boards))
        return
    if output.suffix == ".csv":
        rows = [(row, board.budget) for board in boards for row in board.summary]
        text = csv_text([row for row, _ in rows], [budget for _, budget in rows])
    else:
        text = to_markdown(results, boards)
    with replace_when_complete(output) as partial:
        partial.write_text(text, "utf-8")


def _find_baseline(entries: Sequence[Entry], results: dict[str, Results]) -> str:
    """What the baseline of the first results is called now."""
    source, first = next(iter(results.items()))
    slug = next((model.slug for model in first.models if model.label == first.baseline), None)
    return next((e.model.label for e in entries if (e.source, e.model.slug) == (source, slug)), first.baseline)
