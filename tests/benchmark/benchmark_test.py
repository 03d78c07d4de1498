"""The whole command, with DIRECT itself."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

import direct_hifimamba.benchmark.benchmark as module
from direct_hifimamba import cli
from direct_hifimamba.benchmark.executors import Task, local
from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS
from direct_hifimamba.benchmark.report.curves import read_curve
from direct_hifimamba.benchmark.run.runner import lock_folder, write_failure
from direct_hifimamba.benchmark.score.metrics import DEFAULT
from direct_hifimamba.benchmark.score.results import Cost, Results
from direct_hifimamba.benchmark.score.summary import SummaryRow
from direct_hifimamba.benchmark.score.table import Scores
from direct_hifimamba.commands.benchmark import _signals_as_interrupt
from tests.benchmark.report.tables_test import read_tables
from tests.benchmark.small_benchmark import MASKS, VOLUMES, write_data, write_specification

# Four times as many as those of a trial of the search, which cannot be fewer than DIRECT's first checkpoint needs.
ITERATIONS = 4 * MIN_ITERATIONS
MODELS = {
    "U-Net": {"configs": ["unet.yaml"], "scaled_parameters": {"unet.conv_out.*": 1e-4}},
    "failing": {"configs": ["failing.yaml"]},
}
RATES = [1e-9, 0.01]
COMMAND = ["benchmark", "specification.yaml", "--output", "out", "--jobs", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchmarkFolder]:
    """A benchmark that was interrupted in a training, continued, and has a model that fails; the working directory."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_data(folder / "data")
    search = {"learning_rates": RATES, "budget": None}
    write_specification(
        folder,
        models=MODELS,
        seeds=[0],
        budget={"iterations": ITERATIONS},
        search=search,
        metrics=["hfen"],
        validations=2,
    )
    cell = BenchmarkFolder(folder / "out").cell("U-Net", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.MonkeyPatch.context() as interrupting:
            interrupting.setattr(local, "_SECONDS_BETWEEN_PROGRESS", 0.1)
            show = module._progress

            @module.contextmanager
            def interrupt_in_training(runs: list[module.Run], kind: str) -> Iterator[object]:
                def interrupt() -> None:
                    # The first checkpoint is there by then: DIRECT makes another one only if the signal comes in time.
                    if any(MIN_ITERATIONS < run.iterations_done < ITERATIONS for run in runs if kind == "cell"):
                        raise KeyboardInterrupt

                with show(runs, kind):
                    yield interrupt

            interrupting.setattr(module, "_progress", interrupt_in_training)
            with pytest.raises(SystemExit, match="130"):
                cli.main(COMMAND)
        assert cell.log.exists() and not cell.failure.exists()
        assert not BenchmarkFolder(Path("out")).results_json.exists()
        with pytest.raises(SystemExit, match="1"):  # one model fails
            cli.main(COMMAND)
        yield BenchmarkFolder(Path("out"))


@pytest.mark.slow
def test_a_benchmark_resumes_and_has_failures_in_their_cells(finished: BenchmarkFolder) -> None:
    log = finished.cell("U-Net", 0).log.read_text("utf-8")
    assert re.search(r"Starting from iteration: [1-9]", log)
    results = Results.load(finished.results_json)
    scores = Scores.load(finished.scores)
    assert [(failure.model, failure.seed) for failure in results.failures] == [("failing", 0)]
    assert set(scores.models) == {"U-Net", "zero-filled"}
    for label in scores.models:
        for acceleration in MASKS:
            (volumes,) = scores.volumes(label, acceleration, "fastmri_psnr").values()
            assert set(volumes) == {f"{name}.h5" for name in VOLUMES["test"]}
    for rate in RATES:
        assert "Unknown initializer_initialization" in finished.trial("failing", rate).failure.read_text()
    assert "No learning rate of the search gave a score" in finished.cell("failing", 0).failure.read_text()
    assert results.provenance.command == "direct-hifimamba benchmark specification.yaml --output out"
    assert f"direct-hifimamba train {finished.cell('U-Net', 0).experiment.resolve()}" in log
    assert {"selective scan", "compiled kernels"} <= set(results.provenance.versions)


@pytest.mark.slow
def test_the_plan_lists_all_runs(finished: BenchmarkFolder) -> None:
    runs = json.loads(finished.plan.read_text())["runs"]
    names = [f"search/{model}/lr_{rate:g}" for model in ("u_net", "failing") for rate in RATES]
    assert [run["name"] for run in runs] == [*names, "cells/u_net/seed_0", "cells/failing/seed_0"]
    assert [run["kind"] for run in runs] == [*["trial"] * len(names), "cell", "cell"]


@pytest.mark.slow
def test_search_decides_and_weights_are_scaled(finished: BenchmarkFolder) -> None:
    described = Results.load(finished.results_json).models[0]
    scores = {trial.learning_rate: trial.score for trial in described.search if trial.score is not None}
    assert list(scores) == RATES
    cell = finished.cell("U-Net", 0)
    assert OmegaConf.load(cell.config).training.lr == described.learning_rate == max(scores, key=scores.__getitem__)
    weights = torch.load(cell.initialisation, weights_only=True)["model"]
    largest = {name: value.abs().max() for name, value in weights.items()}
    assert max(value for name, value in largest.items() if "conv_out" in name) < 1e-3 < max(largest.values())
    assert "Initializing from" in cell.log.read_text("utf-8")


@pytest.mark.slow
def test_metrics_are_those_of_direct(finished: BenchmarkFolder) -> None:
    scores = Scores.load(finished.scores)
    assert scores.metrics == [*DEFAULT, "hfen"]
    for acceleration in MASKS:
        predictions = finished.cell("U-Net", 0).predictions(acceleration)
        theirs = json.loads((predictions / "metrics_inference.json").read_text())
        for name, value in scores.volumes("U-Net", acceleration, "fastmri_psnr")[0].items():
            assert value == pytest.approx(theirs[name]["fastmri_psnr_metric"], rel=1e-4)
    assert all(path.stat().st_size for path in (finished.results_csv, finished.results_markdown))
    assert "data:image/webp" in finished.report.read_text()
    curve = read_curve(finished.cell("U-Net", 0).run)
    assert curve is not None
    ((name, (iterations, _)),) = curve.validation.items()
    assert name == f"fastmri_psnr at {next(iter(MASKS))}"
    # A training that starts from given weights is validated before it begins. DIRECT writes a checkpoint before it
    # validates, so that an interruption between the two leaves out the validation in the middle.
    assert set(iterations) - {ITERATIONS // 2} == {0, ITERATIONS - 1}
    assert len(curve.loss[0]) > 10
    # The search needs one metric alone, and was scored in a task of its own.
    assert "score lr_1e-09" in finished.trial("U-Net", RATES[0]).log.read_text("utf-8")
    searched = pq.read_table(finished.trial("U-Net", RATES[0]).scores(next(iter(MASKS))))
    assert searched["metric"].unique().to_pylist() == ["fastmri_psnr"]


@pytest.mark.slow
def test_what_is_done_is_not_repeated_and_stages_can_be(
    finished: BenchmarkFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks: list[str] = []

    def fail(_: object, stage: str, given: list[Task], show: object) -> dict[str, str]:
        tasks.extend(task.name for task in given)
        return {task.name: "failed again" for task in given}

    monkeypatch.setattr(local.LocalExecutor, "run", fail)
    with pytest.raises(SystemExit, match="1"):
        cli.main([*COMMAND, "--stage", "run"])
    # The model that fails cannot be measured, so all are measured once more.
    assert tasks == ["cost", *(f"search/failing/lr_{rate:g}" for rate in RATES)]
    assert "search/failing/lr_0.01 failed: out/search/failing/lr_0.01/failure.txt" in capsys.readouterr().out
    cli.main([*COMMAND, "--dry-run"])
    *_, unknown, total = capsys.readouterr().out.splitlines()
    assert unknown.split() == ["cells/failing/seed_0", "not", "known"]
    assert total.startswith("6 runs: ") and " hours of one device (cpu), " in total
    tasks.clear()
    with pytest.raises(SystemExit, match="1"):
        cli.main([*COMMAND, "--stage", "score"])
    assert tasks == []
    finished.cell("U-Net", 0).scores(next(iter(MASKS))).unlink()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*COMMAND, "--stage", "score"])
    assert tasks == ["cells/u_net/seed_0"]
    assert "cells/u_net/seed_0 could not be scored: failed again" in capsys.readouterr().err
    cli.main([*COMMAND, "--stage", "score", "--run", "cells/u_net/seed_0"])
    assert finished.cell("U-Net", 0).scores(next(iter(MASKS))).exists()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*COMMAND, "--stage", "score", "--run", "cells/failing/seed_0"])
    assert (
        "no predictions of a run 'cells/failing/seed_0' to score; expected one of: search/u" in capsys.readouterr().err
    )
    tables = finished.results_markdown.read_text()
    finished.results_markdown.unlink()
    with pytest.raises(SystemExit, match="1"):
        cli.main([*COMMAND, "--stage", "report"])
    assert finished.results_markdown.read_text().partition("\n## ")[2] == tables.partition("\n## ")[2] != ""
    cli.main([*COMMAND, "--stage", "run", "--run", "cells/u_net/seed_0"])
    with pytest.raises(SystemExit, match="2"):
        cli.main([*COMMAND, "--stage", "run", "--run", "cells/unet/seed_0"])
    assert "no run 'cells/unet/seed_0'; expected cost or one of search/u_net/lr_1e-09" in capsys.readouterr().err


@pytest.mark.slow
def test_leaderboard_of_two_budgets(finished: BenchmarkFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _check_leaderboard(Results.load(finished.results_json), finished.results_json, capsys)


@pytest.mark.parametrize("budget", [{"iterations": 6}, {"minutes": 1.0}], ids=lambda budget: next(iter(budget)))
def test_costs_are_measured_side_by_side(small_specification: Path, tmp_path: Path, budget: dict[str, float]) -> None:
    write_specification(tmp_path, budget=budget)
    benchmark = module.plan(small_specification, tmp_path / "out")
    measured: list[str] = []

    class Recorder:
        def run(self, stage: str, tasks: list[Task], show_progress: object) -> dict[str, str]:
            measured.extend(task.name for task in tasks)
            costs = {"U-Net": Cost(1, error="failed"), "HiFi-MambaV2": Cost(1, parameters=2)}
            benchmark.write_costs(costs)
            return {}

    for _ in range(2):
        module.measure(benchmark, Recorder())
    # All once more because one failed, but not where iterations of finished trainings come from the times.
    assert measured == ["cost"] * (1 if benchmark.specification.has_minutes else 2)


def test_bad_calls_are_one_error(small_specification: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["benchmark", str(small_specification), "--output", str(output)]

    def error(*words: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, *words])
        return capsys.readouterr().err

    assert f"{output}/plan.json is missing; make it with --stage plan" in error("--stage", "run")
    assert "--slurm has 'gpu'; expected KEY=VALUE" in error("--executor", "slurm", "--slurm", "gpu")
    with lock_folder(output):
        assert f"Another benchmark, or a process that it has left behind, works in {output}" in error()
    cli.main([*command, "--stage", "plan"])
    write_specification(tmp_path, warm_up=0.5)
    assert "specification.warm_up was 0.05 and is 0.5" in error("--stage", "report")


def test_exit_status_and_results_without_a_finished_run(small_specification: Path, tmp_path: Path) -> None:
    write_specification(tmp_path, search={"learning_rates": [1.0], "budget": {"iterations": 6}})
    folder = BenchmarkFolder(tmp_path / "out")
    command = ["benchmark", str(small_specification), "--output", str(folder.path), "--stage"]
    cli.main([*command, "plan"])
    write_failure(folder.trial("U-Net", 1.0), "diverged at 4x")
    cli.main([*command, "report"])
    write_failure(folder.cell("U-Net", 0), "No learning rate worked.")
    cli.main([*command, "plan"])
    with pytest.raises(SystemExit, match="1"):
        cli.main([*command, "report"])
    results = Results.load(folder.results_json)
    # How zero-filled images are cropped is not known yet.
    assert results.summary == [] and not folder.cell("zero-filled", 0).path.exists()
    assert {failure.error for failure in results.failures} == {"It has not been run yet.", "No learning rate worked.\n"}


def _check_leaderboard(results: Results, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The results beside themselves with another budget: a table each, of the trained models and the classical ones."""
    longer, other = (Path(name, "results.json") for name in ("longer", "other"))
    for copy in (longer, other):
        copy.parent.mkdir()
        shutil.copy(path.with_name("scores.parquet"), copy.parent)
    protocol = replace(results.protocol, budget={"minutes": 5.0})
    replace(results, protocol=protocol).save(longer)
    cli.main(["leaderboard", str(path), str(longer), "--output", "leaderboard.md"])
    _, *boards = re.split("^# Budget: ", Path("leaderboard.md").read_text("utf-8"), flags=re.MULTILINE)
    for text, source in zip(boards, (path, longer), strict=True):
        table = read_tables(text)[0]
        column = table[0].index("PSNR, dB ↑")
        scores = {row[0].removesuffix(f" ({source})"): row[column].split()[0].strip("*") for row in table[1:]}
        means = {row.model: f"{row.mean:.2f}" for row in results.summary if _is_first_psnr(row, row.model)}
        assert scores == {model.label: means.get(model.label, "-") for model in results.models}
        assert "failing" in table[-1][0]

    physics = {"forward_operator": "fft2(centered=False)", "backward_operator": "ifft2(centered=False)"}
    evaluation = results.protocol.evaluation | {"physics": results.protocol.evaluation["physics"] | physics}
    replace(results, protocol=replace(protocol, evaluation=evaluation)).save(other)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["leaderboard", str(path), str(other)])
    assert "evaluation.physics.forward_operator ('fft2' and 'fft2(centered=False)')" in capsys.readouterr().err


def _is_first_psnr(row: SummaryRow, label: str) -> bool:
    return (row.model, row.acceleration, row.metric) == (label, next(iter(MASKS)), "fastmri_psnr")


def test_what_is_wrong_is_said_before_anything_starts(
    small_specification: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"learning_rates": [1e-3], "budget": {"iterations": 6}, "metric": "psnr"}
    write_specification(tmp_path, search=search)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["benchmark", str(small_specification), "--output", str(tmp_path / "out")])
    assert "expected one of fastmri_nmse, fastmri_psnr, fastmri_ssim" in capsys.readouterr().err
    assert not BenchmarkFolder(tmp_path / "out").plan.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_signals_interrupt_whatever_they_did_before(number: signal.Signals, handler: signal.Handlers) -> None:
    before = signal.signal(number, handler)
    try:
        with pytest.raises(KeyboardInterrupt), _signals_as_interrupt():
            signal.raise_signal(number)
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)
