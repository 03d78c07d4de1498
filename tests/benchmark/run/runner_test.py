"""Runs with a program in place of DIRECT that does at once what it is told to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import pytest
from omegaconf import OmegaConf

from direct_hifimamba.benchmark.folder import RunFolder
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.run import runner
from direct_hifimamba.benchmark.run.runner import Run, Runner, lock_folder
from tests.benchmark.small_benchmark import write_data

# Trains in two halves, with a checkpoint after each, and predicts by copying the mask. `behaviour` is a file that says
# what happens after the first half of the next training.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

import h5py

command, folder = sys.argv[1], Path(sys.argv[2])
behaviour = Path(sys.argv[sys.argv.index("--cfg") + 1]).with_name("behaviour")
with behaviour.with_name("calls").open("a") as file:
    print(command, file=file)
if command == "train":
    run = folder / "config_input"
    run.mkdir(parents=True, exist_ok=True)

    def save(iteration):
        (run / f"model_{iteration}.pt").touch()
        (run / "last_model.txt").write_text(str(iteration))

    if not (run / "last_model.txt").exists():
        save(4)
        (run / "metrics.json").write_text('{"iteration": 4}\\n')
        what = behaviour.read_text() if behaviour.exists() else ""
        behaviour.unlink(missing_ok=True)
        if what == "wait":
            signal.signal(signal.SIGINT, lambda *_: sys.exit(255))
            behaviour.with_name("waiting").touch()
            time.sleep(60)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            sys.exit("no such tensor")
        if what == "stop early":
            sys.exit(0)
    save(7)
else:
    folder.mkdir(parents=True)
    for path in Path(sys.argv[sys.argv.index("--data-root") + 1]).iterdir():
        with h5py.File(path) as data, h5py.File(folder / path.name, "w") as file:
            shape = data["kspace"].shape
            bad = behaviour.exists() and behaviour.read_text() == "not finite"
            file["reconstruction"] = [[[float("nan") if bad else 1.0] * shape[3]] * shape[2]] * shape[0]
            file["sampling_mask"] = [[[[float(sample)] for sample in data["mask"]]]] * shape[0]
"""


def run_program(arguments: Sequence[str]) -> None:
    sys.argv[1:] = arguments
    exec(PROGRAM, {})


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[str]]:
    write_data(tmp_path / "data")
    monkeypatch.setattr(runner, "run_direct", run_program)
    monkeypatch.setattr(runner, "_SECONDS_BETWEEN_LOOKS", 0.05)
    with lock_folder(tmp_path / "out") as file:
        yield file


def make_run(tmp_path: Path, name: str = "a", behaviour: str = "", **changes: Any) -> Run:
    folder = RunFolder(tmp_path / "out" / name)
    folder.path.mkdir(parents=True)
    if behaviour:
        (folder.path / "behaviour").write_text(behaviour)
    config = OmegaConf.create({"training": {"num_iterations": 8}})
    data = {"4x": tmp_path / "data" / "test_equispaced_4x", "8x": tmp_path / "data" / "test_equispaced_8x"}
    options: dict[str, Any] = {"seed": 0, "schedule": "cosine", "device": "cpu"} | changes
    return Run(name, folder, config, tmp_path / "data" / "train", data, **options)


def calls(run: Run) -> list[str]:
    return (run.folder.path / "calls").read_text().split()


def test_a_run_trains_and_predicts_once(tmp_path: Path, lock: IO[str]) -> None:
    run = make_run(tmp_path)
    assert (run.is_finished, run.iterations_done) == (False, 0)
    for _ in range(2):
        Runner(1, lock).run([run], "test")
        assert (run.is_finished, run.error, run.iterations_done) == (True, None, 8)
        assert calls(run) == ["train", "predict", "predict"]
    assert set(run.folder.run.glob("*.pt")) == {run.folder.checkpoint(4), run.checkpoint}
    with h5py.File(run.folder.predictions("8x") / "d.h5") as file:
        assert set(file) == {"reconstruction", "sampling_mask"}


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("fail", "no such tensor"),
        ("fail", "direct-hifimamba train"),
        ("die", "was ended by SIGKILL, as happens when memory runs out"),
        ("stop early", "ended without its last checkpoint"),
    ],
)
def test_failures_are_written_down_and_tried_again(tmp_path: Path, lock: IO[str], behaviour: str, message: str) -> None:
    runs = [make_run(tmp_path, "failing", behaviour), make_run(tmp_path, "good")]
    Runner(1, lock).run(runs, "test")
    assert [run.is_finished for run in runs] == [False, True]
    assert message in (runs[0].error or "")
    Runner(2, lock).run(runs, "test")
    assert [run.is_finished for run in runs] == [True, True]
    assert calls(runs[1]) == ["train", "predict", "predict"]


def test_what_is_not_finite_is_a_result(tmp_path: Path, lock: IO[str]) -> None:
    run = make_run(tmp_path, behaviour="not finite")
    run.folder.run.mkdir(parents=True)
    (run.folder.run / "last_model.txt").write_text("7")
    Runner(1, lock).run([run], "test")
    assert (run.error or "").startswith("diverged at 4x: The reconstruction of d.h5 is not finite")
    assert run.has_diverged
    assert not run.folder.predictions("4x").exists()
    (run.folder.path / "behaviour").unlink()
    Runner(1, lock).run([run], "test")
    assert not run.is_finished
    assert calls(run) == ["predict"]


def test_a_failed_check_keeps_the_training(tmp_path: Path, lock: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(partial: Path, data: Path) -> None:
        if data.name.endswith("8x"):
            raise ValueError("another mask.")

    run = make_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "check_predictions", refuse)
        Runner(1, lock).run([run], "test")
    assert f"8x failed a check: another mask. The trained weights are kept, in {run.checkpoint}" in (run.error or "")
    assert run.is_trained()
    assert run.checkpoint.exists()
    Runner(1, lock).run([run], "test")
    assert run.is_finished
    assert calls(run) == ["train", "predict", "predict", "predict"]


def test_what_another_configuration_has_trained_is_moved_aside(
    tmp_path: Path, lock: IO[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    for number in range(3):
        run.config.training.lr = 0.1 * number
        Runner(1, lock).run([run], "test")
        assert run.is_finished
        assert calls(run) == ["train", "predict", "predict"]
    output = capsys.readouterr().out
    for number in range(2):
        folder = RunFolder(tmp_path / "out" / f"a_superseded_{number + 1}")
        assert OmegaConf.load(folder.config).training.lr == pytest.approx(0.1 * number)
        assert folder.checkpoint(7).exists()
        assert str(folder.path) in output


def test_an_unforeseen_error_is_that_of_its_run(tmp_path: Path, lock: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(Initialisation, "write", fail)
    runs = [make_run(tmp_path, "scaled", initialisation=Initialisation({"*": 0.5})), make_run(tmp_path, "good")]
    Runner(1, lock).run(runs, "test")
    assert runs[0].error == "ZeroDivisionError: by nought\n"
    assert runs[1].is_finished


def test_interrupted_runs_resume_from_their_checkpoints(
    tmp_path: Path, lock: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path, "finished"), make_run(tmp_path, "a", "wait"), make_run(tmp_path, "b", "wait")]
    runs.append(make_run(tmp_path, "not begun"))

    def interrupt_when_both_wait(*_: object) -> None:
        if all((run.folder.path / "waiting").exists() for run in runs[1:3]):
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_show", interrupt_when_both_wait)
    with pytest.raises(KeyboardInterrupt):
        Runner(2, lock).run(runs, "test")
    assert [run.is_finished for run in runs] == [True, False, False, False]
    assert [run.error for run in runs] == [None] * 4
    assert [run.iterations_done for run in runs] == [8, 4, 4, 0]
    assert not runs[3].folder.log.exists()
    monkeypatch.undo()
    monkeypatch.setattr(runner, "run_direct", run_program)
    Runner(2, lock).run(runs, "test")
    assert all(run.is_finished for run in runs)
    assert calls(runs[0]) == ["train", "predict", "predict"]
    assert calls(runs[1]) == ["train", "train", "predict", "predict"]


def test_a_folder_has_one_benchmark_at_a_time(tmp_path: Path, lock: IO[str]) -> None:
    with pytest.raises(ValueError, match="still at work"), lock_folder(tmp_path / "out"):
        pass


def test_processes_that_are_left_behind_keep_the_folder(
    tmp_path: Path, lock: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, behaviour="wait")

    def close_lock_and_interrupt(*_: object) -> None:
        if (run.folder.path / "waiting").exists():
            lock.close()
            with pytest.raises(ValueError, match="still at work"), lock_folder(tmp_path / "out"):
                pass
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_show", close_lock_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        Runner(1, lock).run([run], "test")
    with lock_folder(tmp_path / "out"):
        pass


def test_commands_say_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, seed=3)
    train, predict = run.training_command(), run.prediction_command("4x")
    assert train[:2] == ["train", "out/a/run"]
    assert {"--cosine-schedule", "--resume"} <= set(train)
    assert "--initialization-checkpoint" not in set(train)
    for command in (train, predict):
        assert command[command.index("--seed") + 1] == "3"
        assert command[command.index("--cfg") + 1] == "out/a/config_input.yaml"
    assert predict[predict.index("--checkpoint") + 1] == "out/a/run/config_input/model_7.pt"
    assert predict[predict.index("--data-root") + 1] == "data/test_equispaced_4x"
    steps = make_run(tmp_path, "b", schedule="steps", initialisation=Initialisation({"*": 0.5})).training_command()
    assert "--cosine-schedule" not in steps
    assert steps[steps.index("--initialization-checkpoint") + 1] == "out/b/initialisation.pt"
