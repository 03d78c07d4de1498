from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from direct_hifimamba.benchmark.report.tables import (
    Cell,
    Table,
    format_engineering,
    groups_remark,
    score_tables,
    write_csv,
    write_markdown,
)
from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.results import Results, Trial
from direct_hifimamba.benchmark.score.statistics import MIN_SUBJECTS
from direct_hifimamba.benchmark.score.summary import SummaryRow, summarise_scores
from direct_hifimamba.benchmark.score.table import Scores
from tests.benchmark.example import (
    ACCELERATIONS,
    BASELINE,
    FAILED,
    QUALITY,
    ZERO_FILLED,
    make_benchmark,
    make_results,
    without,
)

TRAINED = [label for label in QUALITY if label != ZERO_FILLED]
GROUPS = len({metric.group for metric in METRICS.values()})


def markdown(results: Results, folder: Path) -> str:
    write_markdown(folder / "results.md", results)
    return (folder / "results.md").read_text("utf-8")


def read_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as cells, header first."""
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()] for table in tables]
    return [[[cell.strip() for cell in row] for row in (table[0], *table[2:])] for table in rows]


@pytest.fixture
def results() -> Results:
    return make_results(volumes=MIN_SUBJECTS, slices=5)


def test_csv_has_every_number(results: Results, tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", results)
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(QUALITY) * len(ACCELERATIONS) * len(METRICS)
    for line, row in zip(lines, results.summary, strict=True):
        assert (line["model"], line["acceleration"], line["metric"]) == (row.model, row.acceleration, row.metric)
        assert float(line["mean"]) == row.mean
        assert (line["difference_mean"] == "") == (row.difference is None)
        if row.difference is not None:
            assert float(line["difference_high"]) == row.difference.high


def test_markdown_tables_are_complete(results: Results, tmp_path: Path) -> None:
    text = markdown(results, tmp_path)
    tables = read_tables(text)
    assert len(tables) == 2 * GROUPS * len(ACCELERATIONS) + 2
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    scores, differences = tables[:2]
    assert [row[0] for row in scores[1:]] == sorted(QUALITY, key=lambda label: -mean(results, label))
    assert {row[0] for row in differences[1:]} == {label for label in QUALITY if label != BASELINE}
    row = find(results, "RIM")
    column = scores[0].index("PSNR, dB ↑")
    expected = f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]"
    assert next(cells for cells in scores if cells[0] == "RIM")[column].removesuffix(" ≈") == expected
    assert "Test volumes: 6, with 30 slices" in text and "600 iterations" in text and "simulated" in text


def find(results: Results, label: str, metric: str = "fastmri_psnr") -> SummaryRow:
    key = (label, ACCELERATIONS[0], metric)
    return next(row for row in results.summary if (row.model, row.acceleration, row.metric) == key)


def mean(results: Results, label: str) -> float:
    return find(results, label).mean


def test_a_cell_has_one_number_one_interval_and_the_rest_on_demand(results: Results) -> None:
    scores, differences = score_tables(results, ACCELERATIONS[0])["fastMRI"]
    column = list(scores.headings).index("PSNR, dB ↑")
    row = find(results, "RIM")
    cell, difference = (
        next(cells[column] for cells in table.rows if cells[0].text == "RIM") for table in (scores, differences)
    )
    assert (cell.text, cell.interval) == (f"{row.mean:.2f}", f"[{row.low:.2f}, {row.high:.2f}]")
    assert cell.details[0].endswith(f"{row.std:.2f}") and cell.details[1] == f"over 3 seeds {row.seed_std:.2f}"
    assert cell.details[2] == "subjects: 6, volumes: 6, slices: 30"
    assert (difference.text, difference.mark) == (f"{row.difference.mean:+z.2f}", "tied")
    assert difference.details[-1] == f"p = {row.difference.p_value:.3f}"


def test_the_best_is_bold_and_the_indistinguishable_are_marked(tmp_path: Path) -> None:
    results, scores = make_benchmark(volumes=MIN_SUBJECTS, slices=5)
    chosen = Scores(pa.concat_tables([scores.of_model(label, label) for label in ("VarNet", "RIM", ZERO_FILLED)]))
    table = read_tables(markdown(replace(results, summary=summarise_scores(chosen, BASELINE)), tmp_path))[0]
    cells = {row[0]: row[1:4] for row in table[1:]}
    for column in range(3):
        assert sum("**" in row[column] for row in cells.values()) == 1
        assert {label for label in cells if re.search(r"\*\*|≈", cells[label][column])} == {"VarNet", "RIM"}


def test_failures_are_told(results: Results, tmp_path: Path) -> None:
    tables = read_tables(markdown(results, tmp_path))
    assert tables[-1][1] == [FAILED[0], str(FAILED[1]), r"killed: out of memory \| at 3 GiB"]
    seeds = {row[0]: row[tables[0][0].index("seeds")] for row in tables[0][1:]}
    assert seeds == dict.fromkeys(TRAINED, "3") | {"U-Net": "2", ZERO_FILLED: "1"}
    assert "Failures" not in markdown(make_results(failed=False), tmp_path)


def test_model_that_failed_throughout_has_a_row_without_scores(tmp_path: Path) -> None:
    results, scores = make_benchmark(volumes=MIN_SUBJECTS, slices=5)
    summary = summarise_scores(without(scores, model="RIM"), BASELINE)
    assert {row.model for row in summary} == set(QUALITY) - {"RIM"}
    table = read_tables(markdown(replace(results, summary=summary), tmp_path))[0]
    assert table[-1] == ["RIM", "-", "-", "-", "0"]


def test_cells_are_escaped_in_markdown() -> None:
    table = Table("", ["a"], [[Cell("c|d", mark="best")]])
    assert table.to_markdown().endswith(r"**c\|d** |")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (164_320, "", "164 k"),
        (999.9e3, "", "1 M"),
        (12, "", "12"),
        (0.0213, "s", "21.3 ms"),
        (59.96, "s", "60 s"),
        (2.5e-9, "s", "2.5 ns"),
        (3.2e9, "B", "3.2 GB"),
        (0, "s", "0 s"),
    ],
)
def test_formats_costs(value: float, unit: str, expected: str) -> None:
    assert format_engineering(value, unit) == expected


def test_few_subjects_show_their_values_and_claim_nothing(results: Results, tmp_path: Path) -> None:
    few = make_results(volumes=2, slices=2)
    (remark,) = groups_remark(few.summary)
    text = markdown(few, tmp_path)
    assert "subjects of the test volumes: 2." in remark and remark in text
    row = find(few, "RIM")
    cell = next(cells for cells in read_tables(text)[0] if cells[0] == "RIM")[2]
    assert cell == f"{row.mean:.2f} {{{row.singles[0]:.2f}, {row.singles[1]:.2f}}} ≈"
    assert not any(row.difference.is_distinguishable for row in few.summary if row.difference)
    assert groups_remark(results.summary) == [] and "{" not in markdown(results, tmp_path)


@pytest.mark.parametrize(("chosen", "is_flagged"), [(1e-4, True), (1e-3, False), (1e-2, True)])
def test_learning_rates_at_the_edge_of_the_search_are_flagged(
    results: Results, tmp_path: Path, chosen: float, is_flagged: bool
) -> None:
    trials = [Trial(rate, 1.0) for rate in (1e-4, 1e-2, 1e-3)]
    models = [replace(model, learning_rate=chosen, search=trials) for model in results.models]
    text = markdown(replace(results, models=models), tmp_path)
    table = next(table for table in read_tables(text) if "learning rate" in table[0])
    cells = {row[table[0].index("learning rate")] for row in table[1:]}
    assert cells == {f"{chosen:g} (edge)" if is_flagged else f"{chosen:g}"}
