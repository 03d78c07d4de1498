"""Tables of the models of several benchmarks that used the same data, masks, loss, evaluation and metrics.

Only models with equal budgets are ranked, and compared, with each other: there is one table for every budget.
"""

import math
import reprlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import pyarrow as pa

from direct_hifimamba.benchmark.folder import SCORES_NAME
from direct_hifimamba.benchmark.plan.configurations import find_difference
from direct_hifimamba.benchmark.report.tables import (
    NOTHING,
    Cell,
    Column,
    Table,
    csv_text,
    format_budget,
    join_sections,
    score_cell,
    score_sections,
    write_text,
)
from direct_hifimamba.benchmark.score.metrics import METRICS, metric_definitions
from direct_hifimamba.benchmark.score.results import Failure, Model, Results
from direct_hifimamba.benchmark.score.summary import SummaryRow, summarise_scores
from direct_hifimamba.benchmark.score.table import Scores

RANKED_BY = "fastmri_ssim"
SHOWN = ("fastmri_ssim", "fastmri_psnr", "fastmri_nmse")
SAME_SCORE = 1e-3
"""Relative difference between machines that a classical reconstruction may have."""


@dataclass(frozen=True)
class Loaded:
    """What one benchmark has found."""

    results: Results
    scores: Scores

    @classmethod
    def load(cls, path: Path) -> "Loaded":
        """Read `results.json` and the table of scores beside it; raises OSError or ValueError if either is damaged."""
        return cls(Results.load(path), Scores.load(path.with_name(SCORES_NAME)))


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard: a model, perhaps with another label than in the benchmark that it comes from.

    `source` and `budget` are the name and the budget of that benchmark, `label` is the model's label there.
    """

    model: Model
    label: str
    source: str
    budget: str


def merge(loaded: Mapping[str, Loaded]) -> list[Entry]:
    """Return the models of several benchmarks as rows of one leaderboard.

    A classical reconstruction with the same scores in all of them is one row. To labels that several other models have,
    the name of the results is appended.

    Parameters
    ----------
    loaded : mapping
        By a name of each, such as its path.

    Raises
    ------
    ValueError
        If they do not have the same protocol, or not the metrics of this version.
    """
    _check_protocols({source: entry.results for source, entry in loaded.items()})
    entries: list[Entry] = []
    for source, found in loaded.items():
        for model in found.results.models:
            budget = format_budget(found.results.protocol) if model.kind == "trained" else NOTHING
            entry = Entry(model, model.label, source, budget)
            if not any(_is_same_classical(entry, other, loaded) for other in entries):
                entries.append(entry)
    labels = Counter(entry.label for entry in entries)
    return [
        replace(entry, model=replace(entry.model, label=f"{entry.label} ({entry.source})"))
        if labels[entry.label] > 1
        else entry
        for entry in entries
    ]


def _check_protocols(results: Mapping[str, Results]) -> None:
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
    if first.protocol.metrics != metric_definitions(name for name in first.protocol.metrics if name in METRICS):
        raise ValueError(
            f"{first_name} has other metrics than this version of direct-hifimamba; run its benchmark again, which "
            "scores again without training."
        )


def _is_same_classical(entry: Entry, other: Entry, loaded: Mapping[str, Loaded]) -> bool:
    if entry.model.kind != "classical" or (entry.label, entry.model.kind) != (other.label, other.model.kind):
        return False
    ours, theirs = (loaded[one.source].scores for one in (entry, other))
    return all(
        _is_close(ours.volumes(entry.label, name, metric), theirs.volumes(entry.label, name, metric))
        for name in dict.fromkeys([*ours.accelerations, *theirs.accelerations])
        for metric in ours.metrics
    )


def _is_close(seeds: dict[int | None, dict[str, float]], others: dict[int | None, dict[str, float]]) -> bool:
    ours, theirs = (
        {(seed, file): value for seed in side for file, value in side[seed].items()} for side in (seeds, others)
    )
    return ours.keys() == theirs.keys() and all(
        math.isclose(ours[key], theirs[key], rel_tol=SAME_SCORE) or (math.isnan(ours[key]) and math.isnan(theirs[key]))
        for key in ours
    )


def rank(entries: Sequence[Entry], summary: Sequence[SummaryRow]) -> list[Entry]:
    """Return entries by their mean `RANKED_BY`, best first; models without a score at an acceleration come last."""
    accelerations = {row.acceleration for row in summary}

    def key(entry: Entry) -> tuple[bool, float]:
        means = [row.mean for row in summary if (row.model, row.metric) == (entry.model.label, RANKED_BY)]
        return len(means) < len(accelerations), -fmean(means) if means else 0

    return sorted(entries, key=key)


@dataclass(frozen=True)
class Board:
    """The models of one budget and the classical reconstructions, best first, with their scores and failures."""

    budget: str
    baseline: str
    entries: list[Entry]
    summary: list[SummaryRow]
    failures: list[Failure]


def make_boards(entries: Sequence[Entry], loaded: Mapping[str, Loaded], baseline: str | None) -> list[Board]:
    """Return one board for every budget, in the order in which the results have them.

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
    groups = {file: group for found in loaded.values() for file, group in found.results.protocol.data.groups.items()}
    firsts: dict[str, str] = {}
    for source, found in loaded.items():
        firsts.setdefault(format_budget(found.results.protocol), source)
    boards = []
    for budget, first in firsts.items():
        chosen = [entry for entry in entries if entry.budget in (budget, NOTHING)]
        is_there = baseline in [entry.model.label for entry in chosen]
        own = baseline if baseline is not None and is_there else _find_baseline(chosen, first, loaded)
        summary = summarise_scores(_join(chosen, loaded), own, groups)
        failures = [
            replace(failure, model=entry.model.label)
            for entry in chosen
            for failure in loaded[entry.source].results.failures
            if failure.model == entry.label
        ]
        boards.append(Board(budget, own, rank(chosen, summary), summary, failures))
    return boards


def _join(entries: Sequence[Entry], loaded: Mapping[str, Loaded]) -> Scores:
    """Return the scores of the entries, under their labels in the leaderboard."""
    tables = [loaded[entry.source].scores.of_model(entry.label, entry.model.label) for entry in entries]
    return Scores(pa.concat_tables(tables))


def _find_baseline(entries: Sequence[Entry], source: str, loaded: Mapping[str, Loaded]) -> str:
    """Return the label of the baseline of some results in the leaderboard."""
    baseline = loaded[source].results.baseline
    found = (entry.model.label for entry in entries if (entry.source, entry.label) == (source, baseline))
    return next(found, baseline)


def to_markdown(loaded: Mapping[str, Loaded], boards: Sequence[Board]) -> str:
    """Return the leaderboards, and all that the single benchmarks show."""
    metric = METRICS[RANKED_BY]
    ranking = (
        f"Ranked by the mean {metric.label} ({RANKED_BY}) over accelerations, among models of one budget. Models of "
        "different budgets are not ranked with each other."
    )
    sections = ["# Leaderboard", ranking]
    for board in boards:
        sections += [f"## Budget: {board.budget}", _ranking_table(board).to_markdown()]
    sections.append("Times and memory can be compared only between models that were measured on one host.")
    sections.append(_source_table(loaded).to_markdown())
    for board in boards:
        sections += [f"# Scores with a budget of {board.budget}"] * (len(boards) > 1)
        models = [entry.model for entry in board.entries]
        sections += score_sections(models, board.failures, board.summary, board.baseline)
    return join_sections(sections)


def _source_table(loaded: Mapping[str, Loaded]) -> Table:
    headings = ("results", "name", "budget", "seeds", "written", "host")
    rows = []
    for source, results in ((source, found.results) for source, found in loaded.items()):
        seeds = ", ".join(map(str, results.protocol.seeds))
        texts = (source, results.name, format_budget(results.protocol), seeds, results.created, results.provenance.host)
        rows.append([Cell(text) for text in texts])
    return Table("Results", [Column(heading, is_text=True) for heading in headings], rows)


def _ranking_table(board: Board) -> Table:
    accelerations = list(dict.fromkeys(row.acceleration for row in board.summary))
    rows = {(row.model, row.acceleration, row.metric): row for row in board.summary}
    columns = [(acceleration, name) for acceleration in accelerations for name in SHOWN]
    headings = [Column("rank", is_text=True), Column("model", is_text=True)]
    return Table(
        f"Leaderboard for a budget of {board.budget}",
        [*headings, *(Column(f"{METRICS[name].heading}, {acceleration}") for acceleration, name in columns)],
        [
            [
                Cell(str(position)),
                Cell(entry.model.label),
                *(score_cell(rows.get((entry.model.label, acceleration, name))) for acceleration, name in columns),
            ]
            for position, entry in enumerate(board.entries, 1)
        ],
    )


def write_leaderboard(paths: Sequence[Path], output: Path | None = None, baseline: str | None = None) -> None:
    """Merge results of benchmarks into one table.

    Parameters
    ----------
    paths : sequence of Path
        Files `results.json`, with `scores.parquet` beside each.
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
    loaded = {str(path): Loaded.load(path) for path in paths}
    boards = make_boards(merge(loaded), loaded, baseline)
    if output is None:
        sys.stdout.write(to_markdown(loaded, boards))
    elif output.suffix == ".csv":
        rows = [(row, board.budget) for board in boards for row in board.summary]
        write_text(output, csv_text([row for row, _ in rows], [budget for _, budget in rows]))
    else:
        write_text(output, to_markdown(loaded, boards))
