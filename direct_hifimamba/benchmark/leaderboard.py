"""Tables of the models of several benchmarks that used the same data, masks, loss, evaluation and metrics.

Only models with equal budgets are compared with each other: there are tables for every budget.
"""

import math
import reprlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa

from direct_hifimamba.benchmark.folder import SCORES_NAME
from direct_hifimamba.benchmark.plan.configurations import find_difference
from direct_hifimamba.benchmark.report.tables import (
    Cell,
    Table,
    csv_row,
    csv_text,
    format_budget,
    join_sections,
    score_sections,
)
from direct_hifimamba.benchmark.score.metrics import METRICS, metric_definitions
from direct_hifimamba.benchmark.score.results import Model, Results
from direct_hifimamba.benchmark.score.summary import summarise_scores
from direct_hifimamba.benchmark.score.table import Scores
from direct_hifimamba.files import write_text

SAME_SCORE = 1e-3
"""Relative difference that the scores of a classical reconstruction may have between machines."""


@dataclass(frozen=True)
class Loaded:
    """What one benchmark has found."""

    results: Results
    scores: Scores

    @classmethod
    def load(cls, path: Path) -> "Loaded":
        """Read `results.json` and the table of scores beside it; raises OSError or ValueError if either is damaged."""
        return cls(Results.load(path), Scores.load(path.with_name(SCORES_NAME)))


def make_boards(loaded: Mapping[str, Loaded], baseline: str | None = None) -> list[Results]:
    """Return the models of one budget and the classical reconstructions, for every budget, in the order of the results.

    To labels that models of several results have, the name of the results is appended. Classical reconstructions, which
    depend on data and masks alone, are those of the first results that have scores of them.

    Parameters
    ----------
    loaded : mapping
        By a name of each, such as its path.
    baseline : str, optional
        Differences are taken to this model where it has the budget, and otherwise to the baseline of the first results
        of that budget.

    Raises
    ------
    ValueError
        If they do not have the same protocol, or not the metrics of this version, if their scores of a classical
        reconstruction differ, or if no model has the label `baseline`.
    """
    _check_protocols({source: found.results for source, found in loaded.items()})
    members = [(source, model) for source, found in loaded.items() for model in found.results.models]
    counts = Counter(model.label for _, model in members if model.kind == "trained")
    classical = _find_classical(loaded)
    groups = {file: group for found in loaded.values() for file, group in found.results.protocol.data.groups.items()}

    def rename(source: str, label: str) -> str:
        return f"{label} ({source})" if counts[label] > 1 else label

    known = [rename(source, model.label) for source, model in members]
    if baseline is not None and baseline not in known:
        raise ValueError(f"There is no model {baseline!r} to take differences to; expected one of {', '.join(known)}.")
    sources: dict[str, list[str]] = {}
    for source, found in loaded.items():
        sources.setdefault(format_budget(found.results.protocol), []).append(source)
    boards = []
    for chosen in sources.values():
        trained = [(source, model) for source, model in members if source in chosen and model.kind == "trained"]
        models = {rename(source, model.label): (source, model) for source, model in (*trained, *classical.values())}
        first = loaded[chosen[0]].results
        own = baseline if baseline is not None and baseline in models else rename(chosen[0], first.baseline)
        tables = [loaded[source].scores.of_model(model.label, label) for label, (source, model) in models.items()]
        failures = [(source, failure) for source in chosen for failure in loaded[source].results.failures]
        board = replace(
            first,
            baseline=own,
            models=[replace(model, label=label) for label, (_, model) in models.items()],
            failures=[replace(failure, model=rename(source, failure.model)) for source, failure in failures],
            summary=summarise_scores(Scores(pa.concat_tables(tables)), own, groups),
        )
        boards.append(board)
    return boards


def _find_classical(loaded: Mapping[str, Loaded]) -> dict[str, tuple[str, Model]]:
    """Return classical reconstructions by label, with the name of the first results that have scores of them.

    Raises
    ------
    ValueError
        If others have other scores.
    """
    found: dict[str, tuple[str, Model]] = {}
    for source, one in loaded.items():
        for model in one.results.models:
            if model.kind == "classical" and model.label in one.scores.models:
                first, _ = found.setdefault(model.label, (source, model))
                _check_same_scores(model.label, first, source, loaded)
    return found


def _check_same_scores(label: str, first: str, other: str, loaded: Mapping[str, Loaded]) -> None:
    expected, found = loaded[first].scores, loaded[other].scores
    for acceleration, metric in product(expected.accelerations, expected.metrics):
        ours, theirs = (scores.volumes(label, acceleration, metric).get(None, {}) for scores in (expected, found))
        for file in sorted(ours.keys() | theirs.keys()):
            value, another = ours.get(file, math.nan), theirs.get(file, math.nan)
            if not np.isclose(value, another, rtol=SAME_SCORE, atol=0, equal_nan=True):
                raise ValueError(
                    f"{first} and {other} cannot stand in one table: the {metric} of {label} for {file} at "
                    f"{acceleration} is {value:g} and {another:g}, but it depends on data and masks alone. Compute it "
                    "in both with the same versions of direct-hifimamba and BART, or leave BART out of one "
                    "specification (`classical`)."
                )


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


def to_markdown(loaded: Mapping[str, Loaded], boards: Sequence[Results]) -> str:
    """Return the tables of every budget, and where the results come from."""
    rows = []
    for source, results in ((source, found.results) for source, found in loaded.items()):
        seeds = ", ".join(map(str, results.protocol.seeds))
        texts = (source, results.name, format_budget(results.protocol), seeds, results.created, results.provenance.host)
        rows.append([Cell(text) for text in texts])
    headings = ("results", "name", "budget", "seeds", "written", "host")
    sections = [
        "# Leaderboard",
        "Models of different budgets are not compared with each other. Times and memory can be compared only between "
        "models that were measured on one host.",
        Table("Results", headings, rows, texts=len(headings)).to_markdown(),
    ]
    for board in boards:
        sections += [f"# Budget: {format_budget(board.protocol)}", *score_sections(board)]
    return join_sections(sections)


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
    boards = make_boards(loaded, baseline)
    if output is None:
        sys.stdout.write(to_markdown(loaded, boards))
    elif output.suffix == ".csv":
        rows = [{"budget": format_budget(board.protocol)} | csv_row(row) for board in boards for row in board.summary]
        write_text(output, csv_text(rows))
    else:
        write_text(output, to_markdown(loaded, boards))
