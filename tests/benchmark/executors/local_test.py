"""Tests of the executor for this machine."""

import os
from pathlib import Path

import pytest
import torch

from direct_hifimamba.benchmark.executors import executor, make_executor
from direct_hifimamba.benchmark.executors.cores import CORES, available_cores
from direct_hifimamba.benchmark.executors.executor import Task

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "COMMAND", "tests.benchmark.executors.command")
    for name in (VISIBLE, CORES, "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def make_task(folder: Path, action: str, name: str = "", *words: str) -> Task:
    name = name or action
    return Task(name, (action, str(folder / f"{name}.txt"), *words), folder / name)


def test_failures_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    looks: list[None] = []
    tasks = [make_task(tmp_path, action) for action in ("raise", "kill", "write")]
    failures = make_executor("local", tmp_path, jobs=2).run("run", tasks, lambda: looks.append(None))
    assert failures.keys() == {"raise", "kill"} and looks
    assert "RuntimeError: a job that raises" in failures["raise"] and "exit status 1" in failures["raise"]
    assert "was ended by SIGKILL, as happens when memory runs out" in failures["kill"]
    assert (tmp_path / "write.txt").exists() and "write begins" in tasks[2].log.read_text()


def test_interrupted_tasks_end_and_are_resumed(tmp_path: Path) -> None:
    task = make_task(tmp_path, "long")

    def interrupt() -> None:
        if (tmp_path / "long.pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_executor("local", tmp_path).run("run", [task], interrupt)
    assert (tmp_path / "long.txt").read_text() == "SIGINT"
    assert make_executor("local", tmp_path).run("run", [task], lambda: None) == {}


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1"]), ("3,5", ["3", "5"])])
def test_gpus_are_taken_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setenv(CORES, "7")
    tasks = [make_task(tmp_path, "write", f"{number}", VISIBLE, CORES) for number in range(3)]
    assert make_executor("local", tmp_path, "cuda").run("run", tasks, lambda: None) == {}
    written = [(tmp_path / f"{number}.txt").read_text() for number in range(3)]
    assert written[:2] == [f"{VISIBLE}={gpu} {CORES}=3" for gpu in expected]
    assert written[2] in written[:2]


def test_without_a_gpu_there_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"finds no GPU here\. Set `device: cpu`"):
        make_executor("local", tmp_path, "cuda")


def test_cores_are_those_of_the_executor_or_of_slurm_or_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert available_cores() == 5
    monkeypatch.setenv(CORES, "2")
    assert available_cores() == 2
