"""Tasks as jobs of a Slurm cluster, submitted by submitit: one array per stage."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from direct_hifimamba.benchmark.executors import executor
from direct_hifimamba.benchmark.executors.executor import Task
from direct_hifimamba.benchmark.run.processes import ENVIRONMENT
from direct_hifimamba.files import write_text

STAGES = ("run", "score")
_SECONDS_TO_STOP = 60
_SECONDS_BETWEEN_LOOKS = 1.0
_LOOKS_BETWEEN_SACCT = 30
_SIGNALS = {"SIGUSR2": "shortly before its time limit or for other jobs", "SIGTERM": "as by scancel"}


class SlurmExecutor:
    """Runs tasks as jobs of a Slurm cluster.

    If this process is killed, the jobs continue, and the next call waits for them instead of submitting them again.

    Parameters
    ----------
    folder : Path
        For submitit's files. The nodes must see it, and the folders of all runs, under the same paths.
    jobs : int, optional
        Number of tasks side by side. Default: as many as Slurm allows.
    options : mapping
        Options of `sbatch` without dashes, for all stages (`partition: gpu`) or for one (`run: {gpus-per-node: 1}`).
        Beside these, `setup` lists shell commands that come first in a job, and `signal-delay-s` says how many seconds
        before its time limit a job is interrupted (90). `time` is in minutes; its default is that of the partition.

    Raises
    ------
    ValueError
        If there is no Slurm.
    """

    def __init__(self, folder: Path, jobs: int | None, options: Mapping[str, Any]) -> None:
        self._folder, self._jobs, self._options = folder, jobs, options
        try:
            self._make_executor("run")
        except RuntimeError as error:
            raise ValueError(f"There is no Slurm here ({error}). Use `--executor local`.") from error

    def _make_executor(self, stage: str) -> submitit.SlurmExecutor:
        common = {key: value for key, value in self._options.items() if key not in STAGES}
        options = {str(key).replace("-", "_"): value for key, value in (common | self._options.get(stage, {})).items()}
        slurm = submitit.SlurmExecutor(self._folder / "%j", max_num_timeout=0)
        known = slurm._valid_parameters()
        # srun does not take the number of cores from sbatch.
        setup = ["export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}", *options.pop("setup", [])]
        slurm.update_parameters(
            **{"job_name": f"benchmark-{stage}", "time": None}
            | ({"array_parallelism": self._jobs} if self._jobs else {})
            | {key: value for key, value in options.items() if key in known},
            additional_parameters={key: value for key, value in options.items() if key not in known},
            setup=setup,
            stderr_to_stdout=True,
        )
        return slurm

    def run(self, stage: str, tasks: Sequence[Task], show_progress: Callable[[], None]) -> dict[str, str]:
        """See :class:`direct_hifimamba.benchmark.executors.executor.Executor`."""
        jobs = {task: job for task in tasks if (job := self._find(stage, task)) is not None}
        try:
            jobs |= self._submit(stage, [task for task in tasks if task not in jobs])
            looks = 0
            while not all(job.done() for job in jobs.values()):
                show_progress()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                looks += 1
                if looks % _LOOKS_BETWEEN_SACCT == 0:
                    submitit.SlurmJob.watcher.update()
        except BaseException:
            _cancel(list(jobs.values()))
            raise
        show_progress()
        reasons = {task.name: _reason(task, job) for task, job in jobs.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def _find(self, stage: str, task: Task) -> "submitit.SlurmJob[Any] | None":
        """Return the job that an earlier call has submitted for a task, if it has not ended."""
        path = _job_file(stage, task)
        if not path.exists():
            return None
        job: submitit.SlurmJob[Any] = submitit.SlurmJob(self._folder / "%j", path.read_text(encoding="utf-8"))
        return None if job.done(force_check=True) or job.state == "UNKNOWN" else job

    def _submit(self, stage: str, tasks: Sequence[Task]) -> "dict[Task, submitit.SlurmJob[Any]]":
        if not tasks:
            return {}
        for task in tasks:
            task.folder.mkdir(parents=True, exist_ok=True)
        commands = [[sys.executable, "-u", "-m", executor.COMMAND, *task.arguments] for task in tasks]
        try:
            submitted = self._make_executor(stage).map_array(_call, commands, [task.log for task in tasks])
        except FailedJobError as error:
            raise ValueError(f"Slurm refused the jobs of the stage {stage}; change --slurm. {error}") from error
        jobs = cast("list[submitit.SlurmJob[Any]]", submitted)  # submitit declares jobs of any cluster
        for task, job in zip(tasks, jobs, strict=True):
            write_text(_job_file(stage, task), job.job_id)
        return dict(zip(tasks, jobs, strict=True))


def _job_file(stage: str, task: Task) -> Path:
    return task.folder / f"slurm_{stage}.txt"


def _call(command: Sequence[str], log: Path) -> tuple[int, str | None]:
    """Run a command in a job; return its exit status and the last signal from Slurm, which the command gets as well."""
    received: list[str] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, _: received.append(signal.Signals(number).name))
    with log.open("a") as output:
        environment = os.environ | ENVIRONMENT
        process = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    return process.returncode, received[-1] if received else None


def _reason(task: Task, job: "submitit.SlurmJob[Any]") -> str | None:
    """Return why a job failed; None if it has not."""
    if not job.paths.result_pickle.exists() and not job.state.startswith("COMPLETED"):
        return f"Slurm's job {job.job_id} ended as {job.state}. The same command resumes it. Log: {job.paths.stdout}"
    try:
        status, received = job.result()
    except (UncompletedJobError, FailedJobError) as error:
        return f"Slurm's job {job.job_id} failed: {error}"
    if status == 0:
        return None
    if received is not None:
        reason = f"was interrupted by {received}, {_SIGNALS[received]}. The same command resumes it."
        return f"Slurm's job {job.job_id} {reason}"
    return task.failure(status)


def _cancel(jobs: "Sequence[submitit.SlurmJob[Any]]") -> None:
    """Cancel jobs and wait until they have ended."""
    alive = [job for job in jobs if not job.done()]
    if alive:
        subprocess.run(["scancel", *(job.job_id for job in alive)], check=False)
    deadline = time.monotonic() + _SECONDS_TO_STOP
    with suppress(KeyboardInterrupt):
        while time.monotonic() < deadline and not all(job.done(force_check=True) for job in alive):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
