"""Runs with a function in place of DIRECT that does at once what it is told to."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.benchmark.folder import RunFolder
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.run import runner
from direct_hifimamba.benchmark.run.runner import DirectError, Run, RunError, do_run, lock_folder
from tests.benchmark.small_benchmark import write_data, write_specification


class Program:
    """Trains in two halves, with a checkpoint after each, and predicts by copying the mask."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.behaviour = ""
        """What happens after the first half of the next training, or how predictions are."""

    def __call__(self, arguments: Sequence[str]) -> None:
        command, folder = arguments[0], Path(arguments[1])
        self.calls.append(command)
        if command == "train":
            self._train(folder / "config_input")
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in Path(arguments[arguments.index("--data-root") + 1]).iterdir():
            with h5py.File(path) as data, h5py.File(folder / path.name, "w") as file:
                shape = data["kspace"].shape
                value = float("nan") if self.behaviour == "not finite" else 1.0
                file["reconstruction"] = [[[value] * shape[3]] * shape[2]] * shape[0]
                wrong = self.behaviour == "other masks"
                file["sampling_mask"] = [[[[float(bool(sample) != wrong)] for sample in data["mask"]]]] * shape[0]

    def _train(self, run: Path) -> None:
        def save(iteration: int) -> None:
            (run / f"model_{iteration}.pt").touch()
            (run / "last_model.txt").write_text(str(iteration))

        run.mkdir(parents=True, exist_ok=True)
        behaviour, self.behaviour = self.behaviour, ""
        if not (run / "last_model.txt").exists():
            save(4)
            (run / "metrics.json").write_text('{"iteration": 4}\n')
            if behaviour == "interrupt":
                sys.exit(255)
            if behaviour == "full disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if behaviour == "fail":
                raise ZeroDivisionError("no such tensor")
            if behaviour == "stop early":
                return
        save(7)


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    write_data(tmp_path / "data")
    program = Program()
    monkeypatch.setattr(runner, "run_direct", program)
    return program


def make_run(tmp_path: Path, name: str = "a", **changes: Any) -> Run:
    folder = RunFolder(tmp_path / "out" / name)
    config = OmegaConf.create({"training": {"num_iterations": 8}})
    data = {"4x": tmp_path / "data" / "test_equispaced_4x", "8x": tmp_path / "data" / "test_equispaced_8x"}
    options: dict[str, Any] = {"seed": 0, "schedule": "cosine", "device": "cpu", "workers": 3} | changes
    return Run(name, folder, config, tmp_path / "data" / "train", data, **options)


def test_a_run_trains_and_predicts_once(tmp_path: Path, program: Program) -> None:
    run = make_run(tmp_path)
    assert (run.is_finished, run.iterations_done) == (False, 0)
    for _ in range(2):
        do_run(run)
        assert (run.is_finished, run.folder.error, run.iterations_done) == (True, None, 8)
        assert program.calls == ["train", "predict", "predict"]
    assert set(run.folder.run.glob("*.pt")) == {run.folder.checkpoint(4), run.checkpoint}
    with h5py.File(run.folder.predictions("8x") / "d.h5") as file:
        assert set(file) == {"reconstruction"}  # masks were checked and take much room


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ("interrupt", DirectError, "direct-hifimamba train .* ended with exit status 255"),
        ("full disk", RunError, r"The disk of .* is full .*free some space, and the same command resumes"),
        ("fail", ZeroDivisionError, "no such tensor"),
        ("stop early", RunError, "ended without its last checkpoint"),
    ],
)
def test_what_fails_keeps_its_checkpoint_and_resumes(
    tmp_path: Path, program: Program, behaviour: str, error: type[Exception], message: str
) -> None:
    run = make_run(tmp_path)
    program.behaviour = behaviour
    with pytest.raises(error, match=message):
        do_run(run)
    assert (run.folder.error is not None) == (error is RunError)  # executors write the others, with the end of the log
    assert run.folder.checkpoint(4).exists() and not run.is_finished
    do_run(run)
    assert run.is_finished and run.folder.error is None
    assert program.calls == ["train", "train", "predict", "predict"]


def test_what_is_not_finite_is_a_result(tmp_path: Path, program: Program) -> None:
    run = make_run(tmp_path)
    run.folder.run.mkdir(parents=True)
    (run.folder.run / "last_model.txt").write_text("7")
    program.behaviour = "not finite"
    with pytest.raises(RunError, match=r"diverged at 4x: The reconstruction of d\.h5 is not finite"):
        do_run(run)
    assert run.folder.has_diverged
    assert not run.folder.predictions("4x").exists()


def test_wrong_predictions_keep_the_training(tmp_path: Path, program: Program) -> None:
    run = make_run(tmp_path)
    run.folder.run.mkdir(parents=True)
    (run.folder.run / "last_model.txt").write_text("7")
    program.behaviour = "other masks"
    with pytest.raises(RunError, match=r"at 4x failed a check: d\.h5 was reconstructed from another mask") as error:
        do_run(run)
    assert f"The trained weights are kept, in {run.checkpoint}" in str(error.value)
    program.behaviour = ""
    do_run(run)
    assert run.is_finished
    assert program.calls == ["predict", "predict", "predict"]


def test_what_another_configuration_has_trained_is_moved_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    do_run(run)
    run.config.training.checkpointer = {"checkpoint_steps": 3}  # the speed of a machine changes no weights
    run.set_aside_if_of_another_configuration()
    assert run.is_finished
    for number in range(2):
        run.config.training.lr = 0.1 * number
        run.set_aside_if_of_another_configuration()
        assert not run.folder.path.exists()
        do_run(run)
    output = capsys.readouterr().out
    for number in (1, 2):
        folder = RunFolder(tmp_path / "out" / f"a_superseded_{number}")
        assert folder.checkpoint(7).exists()
        assert str(folder.path) in output


def test_a_run_is_done_by_one_process_at_a_time(tmp_path: Path, program: Program) -> None:
    run = make_run(tmp_path)
    with lock_folder(run.folder.path), pytest.raises(ValueError, match="Another benchmark, or a process"):
        do_run(run)
    assert program.calls == []


def test_commands_say_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, seed=3)
    train, predict = run.training_command(), run.prediction_command("4x", tmp_path / "images")
    assert train[:2] == ["train", f"{tmp_path}/out/a/run"] and predict[:2] == ["predict", f"{tmp_path}/images"]
    assert {"--cosine-schedule", "--resume"} <= set(train)
    assert "--initialization-checkpoint" not in set(train)
    for command in (train, predict):
        assert command[command.index("--seed") + 1] == "3"
        assert command[command.index("--num-workers") + 1] == "3"
        assert command[command.index("--cfg") + 1] == f"{tmp_path}/out/a/config_input.yaml"
    assert predict[predict.index("--checkpoint") + 1] == f"{tmp_path}/out/a/run/config_input/model_7.pt"
    assert predict[predict.index("--data-root") + 1] == f"{tmp_path}/data/test_equispaced_4x"
    steps = make_run(tmp_path, "b", schedule="steps", initialisation=Initialisation({"*": 0.5})).training_command()
    assert "--cosine-schedule" not in steps
    assert steps[steps.index("--initialization-checkpoint") + 1] == f"{tmp_path}/out/b/initialisation.pt"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # DIRECT leaves files open
def test_training_resumes_after_a_full_disk(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With DIRECT and a real disk: the checkpoint finds no room, and the same command continues once there is."""
    monkeypatch.undo()
    path = write_specification(tmp_path, models={"U-Net": {"configs": ["unet.yaml"]}}, budget={"iterations": 6})
    command = ["benchmark", str(path), "--output", str(small_disk / "out")]
    cli.main([*command, "--stage", "plan"])
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**16))
    with pytest.raises(SystemExit):
        cli.main([*command, "--run", "cells/u_net/seed_0"])
    assert "is full" in capsys.readouterr().err
    filler.unlink()
    cli.main([*command, "--run", "cells/u_net/seed_0"])
    assert (small_disk / "out/cells/u_net/seed_0/predictions/equispaced_8x/d.h5").exists()
