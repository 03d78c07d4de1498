from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from direct_hifimamba import cli
from direct_hifimamba.benchmark.leaderboard import merge, rank
from direct_hifimamba.benchmark.score.results import Results
from tests.benchmark.example import ACCELERATIONS, BASELINE, QUALITY, ZERO_FILLED, make_evaluation, make_results
from tests.benchmark.report.tables_test import read_tables


def other_results(**changes: object) -> Results:
    """Another benchmark with the same protocol and a longer training of one of the models, and a new one."""
    results = make_results()
    kept = {"RIM": "RIM", "HiFi-MambaV2": "LPDNet", ZERO_FILLED: ZERO_FILLED}
    return replace(
        results,
        name="other",
        baseline="RIM",
        protocol=replace(results.protocol, budget={"minutes": 30.0}),
        models=[replace(model, label=kept[model.label]) for model in results.models if model.label in kept],
        scores=[replace(score, model=kept[score.model]) for score in results.scores if score.model in kept],
        **changes,
    )


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    make_results().save(Path("first.json"))
    other_results().save(Path("second.json"))
    return ["first.json", "second.json"]


def test_only_equal_budgets_are_ranked_and_compared(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["leaderboard", *paths])
    text = capsys.readouterr().out
    budgets = re.findall("^## Budget: (.*)$", text, flags=re.MULTILINE)
    assert budgets == ["600 iterations", "30 minutes"]
    first, second = (QUALITY.keys() - {"RIM"}) | {"RIM (first.json)"}, {ZERO_FILLED, "LPDNet", "RIM (second.json)"}
    for table, labels in zip(read_tables(text), (first, second), strict=False):
        assert {row[1] for row in table[1:]} == labels
        assert [row[0] for row in table[1:]] == [str(rank) for rank in range(1, len(table))]
        ssim = [sum(float(row[column].strip("*").split("*")[0].split()[0]) for column in (2, 5)) for row in table[1:]]
        assert ssim == sorted(ssim, reverse=True)
        assert "**" in table[1][2]  # the best of its budget
    assert f"Differences to {BASELINE}" in text
    assert "Differences to RIM (second.json)" in text


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
    assert "Differences to RIM (second.json)" in capsys.readouterr().out


def test_classical_rows_that_differ_stay_apart() -> None:
    first, second = make_results(), other_results()
    scores = [
        replace(score, volumes={file: {**v, "fastmri_ssim": 0.1} for file, v in score.volumes.items()})
        if score.model == ZERO_FILLED
        else score
        for score in second.scores
    ]
    labels = {entry.model.label for entry in merge({"a": first, "b": replace(second, scores=scores)})}
    assert {f"{ZERO_FILLED} (a)", f"{ZERO_FILLED} (b)"} <= labels


def test_every_score_stays_with_its_model() -> None:
    first, second = make_results(), other_results()
    for entry in merge({"a": first, "b": second}):
        source = {"a": first, "b": second}[entry.source]
        label = entry.model.label.removesuffix(f" ({entry.source})")
        assert [replace(score, model=label) for score in entry.scores] == [s for s in source.scores if s.model == label]


def test_models_that_failed_somewhere_are_last() -> None:
    results = make_results()
    failed = {("HiFi-MambaV2", ACCELERATIONS[1])} | {("RIM", acceleration) for acceleration in ACCELERATIONS}
    scores = [score for score in results.scores if (score.model, score.acceleration) not in failed]
    summary = [row for row in results.summary if (row.model, row.acceleration) not in failed]
    ranked = rank(merge({"a": replace(results, scores=scores)}), summary)
    assert [entry.model.label for entry in ranked] == ["VarNet", "U-Net", ZERO_FILLED, "HiFi-MambaV2", "RIM"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["leaderboard", *arguments])
    return capsys.readouterr().err


def test_other_protocols_are_refused(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results()
    data = replace(results.protocol.data, masks={}, slices=3)
    replace(results, protocol=replace(results.protocol, data=data)).save(Path("other.json"))
    error = fails(capsys, *paths, "other.json", "--output", "all.md")
    assert "first.json and other.json cannot stand in one table: they differ in slices (30 and 3), masks." in error
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
    replace(results, protocol=replace(results.protocol, evaluation=evaluation)).save(Path("other.json"))
    assert f"they differ in {difference}." in fails(capsys, *paths, "other.json")


def test_another_loss_is_refused(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results()
    loss = {"losses": [{"function": "ssim_loss", "multiplier": 1.0}]}
    replace(results, protocol=replace(results.protocol, loss=loss)).save(Path("other.json"))
    assert "they differ in loss.losses.0.function ('l1_loss' and 'ssim_loss')." in fails(capsys, *paths, "other.json")


def test_metrics_of_another_version_are_refused(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results()
    metrics = {**results.protocol.metrics, "fastmri_ssim": "something else"}
    replace(results, protocol=replace(results.protocol, metrics=metrics)).save(Path("old.json"))
    assert "differ in metrics" in fails(capsys, "first.json", "old.json")
    assert "old.json has other metrics" in fails(capsys, "old.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first.json", "--output", "all.html"], "all.html"),
        (["first.json", "--baseline", "nobody"], "nobody"),
        (["missing.json"], "missing.json"),
        (["first.json", "--output", "missing/all.md"], "missing"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, *arguments)
