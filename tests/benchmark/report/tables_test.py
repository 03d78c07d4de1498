from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from direct_hifimamba.benchmark.report.tables import groups_remark, write_csv, write_markdown, write_model_zoo
from direct_hifimamba.benchmark.score.results import Results, Trial, summarise_scores
from direct_hifimamba.benchmark.score.scores import METRICS
from direct_hifimamba.benchmark.score.statistics import MIN_SUBJECTS
from tests.benchmark.example import ACCELERATIONS, BASELINE, QUALITY, ZERO_FILLED, make_results

TRAINED = [label for label in QUALITY if label != ZERO_FILLED]


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
    groups = len({metric.group for metric in METRICS.values()})
    assert len(tables) == (1 + 2 * groups) * len(ACCELERATIONS) + 2
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    _, scores, differences = tables[:3]
    assert [row[0] for row in scores[1:]] == list(QUALITY)
    assert [row[0] for row in differences[1:]] == [label for label in QUALITY if label != BASELINE]
    row = next(row for row in results.summary if (row.model, row.metric) == ("RIM", "fastmri_psnr"))
    assert f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]" in next(cells for cells in scores if cells[0] == "RIM")[2]
    assert "6 volumes, 30 slices" in text and "600 iterations" in text and "simulated" in text


def test_comparison_has_a_row_per_model_with_cost_scores_and_differences(results: Results, tmp_path: Path) -> None:
    tables = read_tables(markdown(results, tmp_path))
    header, *lines = tables[0]
    cells = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert list(cells) == list(QUALITY)
    assert cells["RIM"]["parameters"] == "1,234,567" and cells[ZERO_FILLED]["parameters"] == "-"
    assert cells["RIM"]["training, min"] == f"{600 * 0.512 / 60:.1f}" and cells["RIM"]["s per slice"] == "0.1"
    for row in results.summary:
        if (row.acceleration, row.metric) == (ACCELERATIONS[0], "fastmri_psnr"):
            score, difference = cells[row.model]["PSNR, dB ↑"], cells[row.model]["Δ PSNR"]
            deviation = "" if row.seed_std is None else f" ± {row.seed_std:.2f}"
            assert score.replace("**", "") == f"{row.mean:.2f}{deviation}"
            assert ("**" in score) == (row.difference_to_best is None)
            if row.difference is None:
                assert (row.model, difference) == (BASELINE, "-")
            else:
                mean, low, high = row.difference.mean, row.difference.low, row.difference.high
                assert difference.removesuffix(" ≈") == f"{mean:+z.2f} [{low:+z.2f}, {high:+z.2f}]"
                assert ("≈" in difference) == (row.model == "RIM") != row.difference.is_distinguishable


def test_the_best_is_bold_and_the_indistinguishable_are_marked(results: Results, tmp_path: Path) -> None:
    scores = [score for score in results.scores if score.model in ("VarNet", "RIM", ZERO_FILLED)]
    results = replace(results, scores=scores, summary=summarise_scores(scores, BASELINE))
    table = read_tables(markdown(results, tmp_path))[1]
    cells = {row[0]: row[1:4] for row in table[1:]}
    for column in range(3):
        assert sum("**" in row[column] for row in cells.values()) == 1
        assert {label for label in cells if re.search(r"\*\*|≈", cells[label][column])} == {"VarNet", "RIM"}


def test_failures_are_told(results: Results, tmp_path: Path) -> None:
    tables = read_tables(markdown(results, tmp_path))
    assert tables[-1][1] == ["U-Net", ACCELERATIONS[0], "0", r"killed: out of memory \| at 3 GiB"]
    seeds = tables[1][0].index("seeds")
    assert {row[0]: row[seeds] for row in tables[1][1:]} == dict.fromkeys(TRAINED, "3") | {
        "U-Net": "2",
        ZERO_FILLED: "1",
    }
    assert "Failures" not in markdown(make_results(failed=False), tmp_path)


def test_model_that_failed_throughout_has_no_scores(results: Results, tmp_path: Path) -> None:
    scores = [score for score in results.scores if score.model != "RIM"]
    failed = [replace(s, status="failed", error="broken", volumes={}, slices={}, spectrum={}) for s in results.scores]
    scores += [score for score in failed if score.model == "RIM"]
    results = replace(results, scores=scores, summary=summarise_scores(scores, BASELINE))
    assert {row.model for row in results.summary} == set(QUALITY) - {"RIM"}
    tables = read_tables(markdown(results, tmp_path))
    assert "RIM" not in {row[0] for row in tables[0]}
    assert "RIM" in {row[0] for row in tables[-1]}


def test_without_scores_of_the_baseline_there_are_no_differences(results: Results) -> None:
    summary = summarise_scores([score for score in results.scores if score.model != BASELINE], BASELINE)
    assert {row.difference for row in summary} == {None}


def test_few_subjects_show_their_values_and_claim_nothing(results: Results, tmp_path: Path) -> None:
    few = make_results(volumes=2, slices=2)
    (remark,) = groups_remark(few.summary)
    text = markdown(few, tmp_path)
    assert "2 subjects" in remark and remark in text
    row = next(row for row in few.summary if (row.model, row.metric) == ("RIM", "fastmri_psnr"))
    cell = next(cells for cells in read_tables(text)[1] if cells[0] == "RIM")[2]
    assert cell == f"{row.mean:.2f} {{{row.singles[0]:.2f}, {row.singles[1]:.2f}}} ≈"
    assert not any(row.difference.is_distinguishable for row in few.summary if row.difference)
    assert groups_remark(results.summary) == [] and "{" not in markdown(results, tmp_path)


def test_the_unit_is_the_subject(results: Results) -> None:
    groups = {file: f"s{index // 3}" for index, file in enumerate(results.protocol.data.files)}
    grouped = summarise_scores(results.scores, BASELINE, groups)
    assert {(row.unit, row.groups, row.volumes) for row in grouped} == {("subject", 2, MIN_SUBJECTS)}
    assert {(row.difference.p_value, row.difference.low) for row in grouped if row.difference} == {(None, None)}
    assert "2 subjects" in groups_remark(grouped)[0]
    assert [row.mean for row in grouped] == pytest.approx([row.mean for row in results.summary])


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


@pytest.mark.parametrize("volumes", [3, MIN_SUBJECTS])
def test_summary_is_the_mean_of_volumes_and_seeds(volumes: int) -> None:
    results = make_results(volumes=volumes, slices=4)
    for row in results.summary:
        scores = [
            [volume[row.metric] for volume in score.volumes.values()]
            for score in results.scores
            if (score.model, score.acceleration, score.status) == (row.model, row.acceleration, "finished")
        ]
        assert row.mean == pytest.approx(np.mean(np.array(scores, np.float64)))
        assert (row.seeds, row.volumes, row.slices) == (len(scores), volumes, 4 * volumes)
        best = [
            other for other in results.summary if (other.acceleration, other.metric) == (row.acceleration, row.metric)
        ]
        values = [other.mean for other in best]
        is_best = row.mean == (max if METRICS[row.metric].higher_is_better else min)(values)
        assert (row.difference_to_best is None) == is_best
        assert (row.difference is None) == (row.model == BASELINE)


def test_undefined_scores_are_left_out(results: Results) -> None:
    scores = [
        replace(
            score,
            slices={file: [{**first, "vif": None}, *rest] for file, (first, *rest) in score.slices.items()},
        )
        if score.status == "finished"
        else score
        for score in results.scores
    ]
    rows = {row.metric: row for row in summarise_scores(scores, BASELINE)}
    assert rows["vif"].slices == 24 and rows["hfen"].slices == 30
    assert np.isfinite(rows["vif"].mean)


def test_model_zoo_is_valid(results: Results, tmp_path: Path) -> None:
    core = pytest.importorskip("docutils.core")
    nodes = pytest.importorskip("docutils.nodes")
    write_model_zoo(tmp_path / "model_zoo.rst", results)
    document = core.publish_doctree(
        (tmp_path / "model_zoo.rst").read_text("utf-8"), settings_overrides={"halt_level": 1, "report_level": 1}
    )
    (table,) = document.findall(nodes.table)
    rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in table.findall(nodes.row)]
    assert rows[0] == ["Model", "Name", "Acceleration", "Checkpoint", "SSIM", "pSNR", "VIF", "NMSE"]
    assert [row[0:3:2] for row in rows[1:]] == [[label, name] for label in TRAINED for name in ACCELERATIONS]
    failed = {("U-Net", ACCELERATIONS[0])}
    assert {tuple(row[0:3:2]) for row in rows[1:] if row[3] == "599 (seed 1)"} == failed
    assert {tuple(row[0:3:2]) for row in rows[1:] if row[3] != "599 (seed 0)"} == failed
    links = [reference["refuri"] for reference in table.findall(nodes.reference)]
    assert links == [f"models/{row[1]}.zip" for row in rows[1:]]
    for row in rows[1:]:
        seed = int(row[3].removesuffix(")")[-1])
        (score,) = [s for s in results.scores if (s.model, s.acceleration, s.seed) == (row[0], row[2], seed)]
        psnr = [volume["fastmri_psnr"] for volume in score.volumes.values()]
        assert row[5] == f"{np.mean(np.array(psnr, np.float64)):.1f}"


def test_model_zoo_shows_what_is_not_known(results: Results, tmp_path: Path) -> None:
    scores = [
        replace(score, volumes={file: v | {"calgary_campinas_vif": None} for file, v in score.volumes.items()})
        for score in results.scores
    ]
    write_model_zoo(tmp_path / "model_zoo.rst", replace(results, scores=scores))
    assert (tmp_path / "model_zoo.rst").read_text().count(r"     - \-") == len(TRAINED) * len(ACCELERATIONS)
