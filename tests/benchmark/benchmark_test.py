"""The whole command, with DIRECT itself."""

import json
import re
import signal
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import direct_hifimamba.benchmark.benchmark as module
from direct_hifimamba import cli
from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import compose_models
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Specification
from direct_hifimamba.benchmark.run import runner
from direct_hifimamba.benchmark.run.classical import find_bart
from direct_hifimamba.benchmark.run.cost import Cost
from direct_hifimamba.benchmark.run.matrix import Benchmark
from direct_hifimamba.benchmark.score.results import Results, SummaryRow
from direct_hifimamba.commands.benchmark import _signals_as_interrupt
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from tests.benchmark.report.tables_test import read_tables
from tests.benchmark.small_benchmark import MASKS, SPECIFICATION, VOLUMES, write_specification

# A checkpoint after every quarter of them, but not before DIRECT's first.
ITERATIONS = 4 * MIN_ITERATIONS
CHECKPOINT = f"model_{ITERATIONS - 1}.pt"


@pytest.mark.slow
def test_models_are_compared_through_interruption_and_failure(
    small_specification: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    models = SPECIFICATION["models"] | {"failing": {"configs": ["failing.yaml"]}}
    write_specification(tmp_path, models=models, seeds=[0], budget={"iterations": ITERATIONS})
    command = ["benchmark", small_specification.name, "--output", "out", "--jobs", "2"]
    folder = BenchmarkFolder(Path("out"))
    cells = {(label, 0): folder.cell(label, 0) for label in models}

    def interrupt_in_training(_: object, runs: list[runner.Run]) -> None:
        # The first checkpoint is there by then: DIRECT makes another one only if the signal comes in good time.
        if any(MIN_ITERATIONS < run.iterations_done < ITERATIONS for run in runs):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_show", interrupt_in_training)
        patch.setattr(runner, "_SECONDS_BETWEEN_LOOKS", 0.05)
        with pytest.raises(SystemExit, match="130"):
            cli.main(command)
    assert "the same command resumes it" in capsys.readouterr().err
    assert not any(cell.failure.exists() for cell in cells.values())
    assert not folder.results_json.exists()

    with pytest.raises(SystemExit, match="1"):  # one model fails
        cli.main(command)
    logs = [cell.log.read_text("utf-8") for cell in cells.values()]
    assert any(re.search(r"Starting from iteration: [1-9]", log) for log in logs)
    output = capsys.readouterr().out
    results = Results.load(folder.results_json)
    classical = ["zero-filled"] if find_bart() is None else ["zero-filled", "BART pics"]
    assert [model.label for model in results.models] == [*models, *classical]
    status = {(score.model, score.seed, score.acceleration): score.status for score in results.scores}
    assert len(status) == len(results.scores) == (len(cells) + len(classical)) * len(MASKS)
    for (label, seed, _), value in status.items():
        assert value == ("failed" if label == "failing" else "finished")
        if label == "failing":
            assert "Unknown initializer_initialization" in cells[label, seed or 0].failure.read_text()
            assert str(cells[label, seed or 0].failure) in output
    for score in results.scores:
        names = set() if score.status == "failed" else {f"{name}.h5" for name in VOLUMES["test"]}
        assert set(score.volumes) == names
    start = "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 direct-hifimamba train out/cells/u_net/seed_0"
    assert any(line.startswith(start) for line in results.provenance.commands)
    assert {"selective scan", "compiled kernels"} <= set(results.provenance.versions)

    # DIRECT's own metric and ours are the same, and so are the model and what is offered of it.
    slug = BenchmarkFolder(Path()).model("U-Net").name
    with zipfile.ZipFile(folder.model_archive("U-Net")) as archive:
        assert sorted(archive.namelist()) == [
            f"{slug}/{name}" for name in ("config.yaml", "metrics_inference.json", CHECKPOINT)
        ]
        theirs = json.loads(archive.read(f"{slug}/metrics_inference.json"))
    for score in results.scores:
        if (score.model, score.seed) == ("U-Net", 0):
            for name, values in score.volumes.items():
                expected = theirs[f"{score.acceleration}/{name}"]["fastmri_psnr_metric"]
                assert values["fastmri_psnr"] == pytest.approx(expected, rel=1e-4)
    Reconstructor.from_checkpoint(folder.model("U-Net") / CHECKPOINT)
    assert all(path.stat().st_size for path in (folder.results_csv, folder.results_markdown, folder.model_zoo))
    assert "<svg" in folder.report.read_text()

    _check_leaderboard(results, folder.results_json, capsys)

    # Nothing is left to do but to try the failing model again.
    with monkeypatch.context() as patch:
        calls: list[list[str]] = []
        patch.setattr(runner.Runner, "_call", lambda _, arguments, log: calls.append(arguments))
        with pytest.raises(SystemExit, match="1"):
            cli.main(command)
    assert len(calls) == 1
    assert "failing" in calls[0][1]


@pytest.mark.slow
def test_search_decides_and_weights_are_scaled(
    small_specification: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"configs": ["unet.yaml"], "scaled_parameters": {"unet.conv_out.*": 1e-4}}
    rates = [1e-9, 1.0]
    write_specification(
        tmp_path,
        models={"U-Net": model},
        seeds=[0],
        search={"learning_rates": rates, "budget": {"iterations": 6}},
        budget={"minutes": 1e-6},
    )
    cli.main(["benchmark", small_specification.name, "--output", "out"])
    folder = BenchmarkFolder(Path("out"))
    results = Results.load(folder.results_json)
    described = results.models[0]
    assert [trial.learning_rate for trial in described.search] == rates
    scores = {trial.learning_rate: trial.score for trial in described.search if trial.score is not None}
    assert 1e-9 in scores
    assert described.learning_rate == max(scores, key=scores.__getitem__)
    cell = folder.cell("U-Net", 0)
    assert OmegaConf.load(cell.config).training.lr == described.learning_rate
    assert described.iterations == MIN_ITERATIONS
    weights = torch.load(cell.initialisation, weights_only=True)["model"]
    largest = {name: value.abs().max() for name, value in weights.items()}
    assert max(value for name, value in largest.items() if "conv_out" in name) < 1e-3 < max(largest.values())
    assert "Initializing from" in cell.log.read_text("utf-8")


@pytest.mark.parametrize("budget", [{"iterations": 6}, {"minutes": 1.0}], ids=lambda budget: next(iter(budget)))
def test_costs_are_measured_side_by_side(
    small_specification: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, float]
) -> None:
    write_specification(tmp_path, budget=budget)
    specification = Specification.load(small_specification)
    folder = BenchmarkFolder(tmp_path / "out")
    folder.path.mkdir()
    benchmark = Benchmark(specification, compose_models(specification), folder)
    measured: list[list[str]] = []

    def measure(configs: dict[str, object], *_: object, **__: object) -> dict[str, Cost]:
        measured.append(list(configs))
        return {label: Cost(1, parameters=2, error="failed" if label == "U-Net" else None) for label in configs}

    monkeypatch.setattr(module, "measure_costs", measure)
    first = module._measure_costs(benchmark)
    assert module._measure_costs(benchmark) == first
    # All once more because one failed, but not where iterations of finished trainings come from the times.
    assert measured == [list(specification.models)] * (1 if specification.has_minutes else 2)


def _check_leaderboard(results: Results, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The results beside themselves with another budget: a table each, of the trained models and the classical ones."""
    protocol = replace(results.protocol, budget={"minutes": 5.0})
    replace(results, protocol=protocol).save(Path("longer.json"))
    cli.main(["leaderboard", str(path), "longer.json", "--output", "leaderboard.md"])
    tables = read_tables(Path("leaderboard.md").read_text("utf-8"))
    for table, source in zip(tables, (path, "longer.json"), strict=False):
        column = table[0].index(f"PSNR, dB, {next(iter(MASKS))}")
        scores = {row[1].removesuffix(f" ({source})"): row[column].split()[0].strip("*") for row in table[1:]}
        means = {row.model: f"{row.mean:.2f}" for row in results.summary if _is_first_psnr(row, row.model)}
        assert scores == {model.label: means.get(model.label, "-") for model in results.models}
        assert "failing" in table[-1][1]

    physics = {"forward_operator": "fft2(centered=False)", "backward_operator": "ifft2(centered=False)"}
    evaluation = results.protocol.evaluation | {"physics": results.protocol.evaluation["physics"] | physics}
    replace(results, protocol=replace(protocol, evaluation=evaluation)).save(Path("other.json"))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["leaderboard", str(path), "other.json"])
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
    assert "search.metric is 'psnr'; expected one of fastmri_ssim, fastmri_psnr" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
