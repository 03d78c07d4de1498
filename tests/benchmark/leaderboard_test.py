from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from direct_hifimamba import cli
from direct_hifimamba.benchmark.leaderboard import Loaded, make_boards
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.table import SCHEMA, Scores
from tests.benchmark.example import (
    BASELINE,
    QUALITY,
    ZERO_FILLED,
    make_benchmark,
    make_evaluation,
    make_results,
    without,
)
from tests.benchmark.report.tables_test import read_tables

KEPT = {"RIM": "RIM", "HiFi-MambaV2": "LPDNet", ZERO_FILLED: ZERO_FILLED}


def other_benchmark() -> tuple[Results, Scores]:
    """Another benchmark with the same protocol and a longer training of one of the models, and a new one."""
    results, scores = make_benchmark()
    other = replace(
        results,
        name="other",
        baseline="RIM",
        protocol=replace(results.protocol, budget={"minutes": 30.0}),
        models=[replace(model, label=KEPT[model.label]) for model in results.models if model.label in KEPT],
        failures=[],
    )
    return other, Scores(pa.concat_tables([scores.of_model(label, new) for label, new in KEPT.items()]))


def save(folder: str, results: Results, scores: Scores) -> str:
    Path(folder).mkdir()
    results.save(Path(folder, "results.json"))
    scores.save(Path(folder, "scores.parquet"))
    return f"{folder}/results.json"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [save("first", *make_benchmark()), save("second", *other_benchmark())]


def test_only_equal_budgets_are_compared(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["leaderboard", *paths])
    _, first, second = re.split("^# Budget: ", capsys.readouterr().out, flags=re.MULTILINE)
    for text, budget, labels in (
        (first, "600 iterations", (QUALITY.keys() - {"RIM"}) | {"RIM (first/results.json)"}),
        (second, "30 minutes", {ZERO_FILLED, "LPDNet", "RIM (second/results.json)"}),
    ):
        assert text.startswith(budget)
        table = read_tables(text)[0]
        assert {row[0] for row in table[1:]} == labels
        column = table[0].index("PSNR, dB ↑")
        psnr = [float(row[column].replace("*", "").split()[0]) for row in table[1:]]
        assert psnr == sorted(psnr, reverse=True)
        assert "**" in table[1][column]  # the best of its budget
    assert f"Differences to {BASELINE}" in first
    assert "Differences to RIM (second/results.json)" in second


def test_written_as_csv(paths: list[str]) -> None:
    cli.main(["leaderboard", *paths, "--output", "all.csv", "--baseline", "LPDNet"])
    with Path("all.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["budget"], line["model"]) for line in lines if line["difference_mean"] == ""} == {
        ("600 iterations", BASELINE),
        ("30 minutes", "LPDNet"),
    }


def test_written_as_markdown(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["leaderboard", *paths, "--output", "all.md"])
    assert capsys.readouterr().out == ""
    cli.main(["leaderboard", *paths])
    assert Path("all.md").read_text("utf-8") == capsys.readouterr().out


def test_baseline_keeps_its_scores_under_its_new_name(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["leaderboard", *reversed(paths)])
    assert "Differences to RIM (second/results.json)" in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "is_refused"), [(1.0005, False), (1.01, True), (None, True)])
def test_classical_scores_that_differ_are_refused(
    factor: float | None, is_refused: bool, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results, scores = other_benchmark()
    changed = {"model": ZERO_FILLED, "metric": "fastmri_ssim", "file": "brain_1.h5", "acceleration": "equispaced_8x"}
    rows = [
        row | {"value": factor and factor * row["value"]} if changed.items() <= row.items() else row
        for row in scores.table.to_pylist()
    ]
    arguments = [paths[0], save("changed", results, Scores(pa.Table.from_pylist(rows, SCHEMA)))]
    if is_refused:
        error = fails(capsys, *arguments, "--output", "all.md")
        assert f"{arguments[0]} and {arguments[1]} cannot stand in one table: the fastmri_ssim of zero-filled" in error
        assert "brain_1.h5 at equispaced_8x" in error
        assert not Path("all.md").exists()
    else:
        cli.main(["leaderboard", *arguments])


def test_classical_scores_may_be_those_of_a_later_file() -> None:
    results, scores = make_benchmark()
    loaded = {"a": Loaded(results, without(scores, model=ZERO_FILLED)), "b": Loaded(*other_benchmark())}
    for board in make_boards(loaded):
        assert ZERO_FILLED in [model.label for model in board.models]
        assert ZERO_FILLED in {row.model for row in board.summary if row.mean is not None}


def test_every_score_stays_with_its_model() -> None:
    loaded = {"a": Loaded(*make_benchmark()), "b": Loaded(*other_benchmark())}
    rows = [row for board in make_boards(loaded) for row in board.summary]
    for row in rows:
        label, _, source = row.model.removesuffix(")").partition(" (")
        found = loaded[source or ("b" if label == "LPDNet" else "a")].scores
        values = [list(files.values()) for files in found.volumes(label, row.acceleration, row.metric).values()]
        assert row.mean == pytest.approx(sum(map(sum, values)) / sum(map(len, values)))
    assert {row.model for row in rows} >= {"RIM (a)", "RIM (b)", "LPDNet", ZERO_FILLED}


def test_failures_are_told_under_the_new_labels(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["leaderboard", paths[0], save("third", *make_benchmark())])
    assert f"| U-Net ({paths[0]}) | 0 | killed: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"nothing"])
def test_a_missing_or_damaged_table_is_told(
    content: bytes | None, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("first/scores.parquet").unlink()
    if content is not None:
        Path("first/scores.parquet").write_bytes(content)
    assert "first/scores.parquet" in fails(capsys, *paths)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["leaderboard", *arguments])
    return capsys.readouterr().err


def test_other_protocols_are_refused(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results()
    data = replace(results.protocol.data, masks={}, slices=3)
    save("other", replace(results, protocol=replace(results.protocol, data=data)), make_benchmark()[1])
    error = fails(capsys, *paths, "other/results.json", "--output", "all.md")
    assert (
        "first/results.json and other/results.json cannot stand in one table: they differ in slices (30 and 3), masks."
        in error
    )
    assert "metrics" not in error
    assert not Path("all.md").exists()


@pytest.mark.parametrize(
    ("evaluation", "difference"),
    [
        (
            make_evaluation(forward_operator="fft2(centered=False)"),
            "evaluation.physics.forward_operator ('fft2' and 'fft2(centered=False)')",
        ),
        (make_evaluation(crop="header"), "evaluation.crop (None and 'header')"),
    ],
)
def test_another_evaluation_is_refused(
    evaluation: dict[str, Any], difference: str, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results()
    save("other", replace(results, protocol=replace(results.protocol, evaluation=evaluation)), make_benchmark()[1])
    assert f"they differ in {difference}." in fails(capsys, *paths, "other/results.json")


def test_another_loss_is_refused(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results()
    loss = {"losses": [{"function": "ssim_loss", "multiplier": 1.0}]}
    save("other", replace(results, protocol=replace(results.protocol, loss=loss)), make_benchmark()[1])
    assert "they differ in loss.losses.0.function ('l1_loss' and 'ssim_loss')." in fails(
        capsys, *paths, "other/results.json"
    )


def test_metrics_of_another_version_are_refused(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results()
    metrics = {**results.protocol.metrics, "fastmri_ssim": "something else"}
    save("old", replace(results, protocol=replace(results.protocol, metrics=metrics)), make_benchmark()[1])
    assert "differ in metrics" in fails(capsys, "first/results.json", "old/results.json")
    assert "old/results.json has other metrics" in fails(capsys, "old/results.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first/results.json", "--output", "all.html"], "all.html"),
        (["first/results.json", "--baseline", "nobody"], "nobody"),
        (["missing.json"], "missing.json"),
        (["first/results.json", "--output", "missing/all.md"], "missing"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, *arguments)
