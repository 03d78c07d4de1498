"""Tests of the Slurm executor on a real cluster, such as `.ci/slurm.sh` starts."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from direct_hifimamba import cli
from direct_hifimamba.benchmark.executors import executor, make_executor
from direct_hifimamba.benchmark.executors.executor import Task
from direct_hifimamba.benchmark.folder import BenchmarkFolder
from tests.benchmark.executors.local_test import make_task
from tests.benchmark.small_benchmark import write_data, write_specification

pytest.importorskip("submitit")

SECONDS = 120
COMMAND = "tests.benchmark.executors.command"
ROOT = Path(__file__).parents[3]


def cluster_answers() -> bool:
    return (
        shutil.which("sinfo") is not None and not subprocess.run(["sinfo"], capture_output=True, check=False).returncode
    )


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "COMMAND", COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, str]]:
    if not cluster_answers():
        pytest.skip("no Slurm answers: start one with `export SLURM_CONF=$(.ci/slurm.sh start)`")

    def run(tasks: list[Task], show_progress: Callable[[], None] = lambda: None, **options: Any) -> dict[str, str]:
        return make_executor("slurm", tmp_path, options=options).run("run", tasks, show_progress)

    return run


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_failures_are_told_and_the_others_go_on(run: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """One array with commands that raise, are killed, stop before their time limit, ignore it, and end well."""
    tasks = [make_task(tmp_path, action) for action in ("raise", "kill", "long", "deaf")]
    tasks.append(make_task(tmp_path, "write", "write", "SLURM_CPUS_PER_TASK", "SLURM_ARRAY_TASK_COUNT", "MINE"))
    options = {"time": 1, "run": {"cpus-per-task": 1, "signal-delay-s": 20}, "score": {"partition": "nowhere"}}
    failures = run(tasks, setup=["export MINE=set"], comment="passed on", **options)
    assert failures.keys() == {"raise", "kill", "long", "deaf"}
    assert "RuntimeError: a job that raises" in failures["raise"]
    assert "was ended by SIGKILL, as happens when memory runs out" in failures["kill"]
    assert "SIGUSR2, shortly before its time limit" in failures["long"]
    assert "ended as TIMEOUT. The same command resumes it" in failures["deaf"]
    assert (tmp_path / "write.txt").read_text() == "SLURM_CPUS_PER_TASK=1 SLURM_ARRAY_TASK_COUNT=5 MINE=set"
    assert (tmp_path / "long.txt").read_text() == "SIGUSR2"
    assert run([tasks[2]]) == {}


@pytest.mark.slow
def test_jobs_of_a_killed_scheduler_are_waited_for_and_cancelled_ones_resumed(
    run: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    task = make_task(tmp_path, "long")
    script = (
        "from pathlib import Path; from direct_hifimamba.benchmark.executors import Task, executor, make_executor;"
        f"executor.COMMAND = {COMMAND!r}; folder = Path({str(tmp_path)!r});"
        f"task = Task('long', {task.arguments!r}, folder / 'long');"
        "make_executor('slurm', folder).run('run', [task], lambda: None)"
    )
    scheduler = subprocess.Popen([sys.executable, "-c", script])
    job_file = task.folder / "slurm_run.txt"
    wait_for(lambda: job_file.exists() and (tmp_path / "long.pid").exists())
    scheduler.kill()
    scheduler.wait()
    job = job_file.read_text()
    failures = run([task], lambda: subprocess.run(["scancel", job], check=True))
    assert f"job {job} " in failures["long"] and job_file.read_text() == job
    assert any(word in failures["long"] for word in ("SIGTERM, as by scancel", "CANCELLED"))
    assert (tmp_path / "long.txt").read_text() == "SIGTERM"
    assert run([task]) == {}
    assert task.log.read_text().count("long begins") == 2


@pytest.mark.slow
def test_a_benchmark_runs_on_a_cluster(
    run: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs are measured in a job, runs are an array, and one of them fails."""
    monkeypatch.setattr(executor, "COMMAND", "direct_hifimamba.cli")
    write_data(tmp_path / "data")
    models = {"U-Net": {"configs": ["unet.yaml"]}, "failing": {"configs": ["failing.yaml"]}}
    path = write_specification(tmp_path, models=models, seeds=[0], budget={"iterations": 6})
    output = tmp_path / "out"
    options = ["--executor", "slurm", "--slurm", "cpus-per-task=1", "time=10"]
    with pytest.raises(SystemExit, match="1"):
        cli.main(["benchmark", str(path), "--output", str(output), *options])
    folder = BenchmarkFolder(output)
    assert folder.report.exists()
    assert "Unknown initializer_initialization" in folder.cell("failing", 0).failure.read_text()
    assert not folder.cell("U-Net", 0).failure.exists()
    assert json.loads(folder.cost.read_text())["U-Net"]["seconds_per_batch"]


@pytest.mark.slow
def test_interrupted_schedulers_cancel_their_jobs(run: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    def interrupt() -> None:
        if (tmp_path / "long.pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([make_task(tmp_path, "long")], interrupt)
    assert (tmp_path / "long.txt").read_text() == "SIGTERM"


def test_what_slurm_refuses_is_one_error(run: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)refused the jobs of the stage run; change --slurm.*nowhere"):
        run([make_task(tmp_path, "write")], partition="nowhere")


def test_without_slurm_there_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"There is no Slurm here .*Use `--executor local`"):
        make_executor("slurm", tmp_path)
