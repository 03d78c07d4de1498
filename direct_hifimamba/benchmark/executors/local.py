"""Tasks in processes of this machine, one on each GPU or as many as there are cores."""

import ctypes
import os
import runpy
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from direct_hifimamba.benchmark.executors import executor
from direct_hifimamba.benchmark.executors.cores import CORES, available_cores
from direct_hifimamba.benchmark.executors.executor import Task
from direct_hifimamba.benchmark.run.processes import start_process

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SECONDS_TO_STOP = 60
_SECONDS_BETWEEN_PROGRESS = 1.0
_PR_SET_PDEATHSIG = 1


class LocalExecutor:
    """Runs tasks on this machine.

    With `device="cuda"`, tasks of the stage `run` take turns on the visible GPUs, one task on each. Otherwise there are
    as many tasks as cores. The cores are divided among the tasks, for their data workers.

    Parameters
    ----------
    device : str
        `cpu` or `cuda`.
    jobs : int, optional
        Number of tasks side by side. Default: see above.

    Raises
    ------
    ValueError
        If there is no GPU.
    """

    def __init__(self, device: str = "cpu", jobs: int | None = None) -> None:
        self._gpus = _visible_gpus() if device == "cuda" else []
        self._jobs = jobs

    def run(self, stage: str, tasks: Sequence[Task], show_progress: Callable[[], None]) -> dict[str, str]:
        """See :class:`direct_hifimamba.benchmark.executors.executor.Executor`."""
        waiting, failures = deque(tasks), dict[str, str]()
        free = self._environments(self._gpus if stage == "run" else [], len(tasks))
        running: list[tuple[Task, BaseProcess, dict[str, str]]] = []
        try:
            while waiting or running:
                show_progress()
                while waiting and free:
                    task, environment = waiting.popleft(), free.pop()
                    task.folder.mkdir(parents=True, exist_ok=True)
                    process = start_process(_call, (executor.COMMAND, task.arguments, task.log, environment))
                    running.append((task, process, environment))
                wait([process.sentinel for _, process, _ in running], _SECONDS_BETWEEN_PROGRESS)
                for entry in [entry for entry in running if entry[1].exitcode is not None]:
                    task, process, environment = entry
                    running.remove(entry)
                    free.append(environment)
                    if process.exitcode:
                        failures[task.name] = task.failure(process.exitcode)
        except BaseException:
            _stop([process for _, process, _ in running])
            raise
        show_progress()
        return failures

    def _environments(self, gpus: Sequence[str], tasks: int) -> list[dict[str, str]]:
        """Return environment variables for each of the tasks at the same time; the last ones are used first."""
        jobs = self._jobs or len(gpus) or available_cores()
        count = max(1, min(jobs, tasks))
        # However few tasks there are, so that all of them load data with as many workers as the one that measures time.
        cores = {CORES: str(max(1, available_cores() // jobs))}
        return [cores | ({_VISIBLE: gpus[index % len(gpus)]} if gpus else {}) for index in reversed(range(count))]


def _visible_gpus() -> list[str]:
    """Return the GPUs that PyTorch sees, as in CUDA_VISIBLE_DEVICES."""
    import torch  # which a job of Slurm need not load

    count = torch.cuda.device_count()
    if count == 0:
        raise ValueError(
            "The device is cuda, but PyTorch finds no GPU here. Set `device: cpu` in the specification, or use "
            "`--executor slurm`."
        )
    return os.environ[_VISIBLE].split(",")[:count] if _VISIBLE in os.environ else [str(gpu) for gpu in range(count)]


def _call(command: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Run `python -m command arguments` in this process, which the terminal's Ctrl-C does not reach."""
    os.setsid()
    with suppress(AttributeError, OSError):  # Linux: should the scheduler be killed, this process is interrupted
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 (line by line, in order with errors)
    os.environ.update(environment)
    sys.argv = [command, *arguments]
    runpy.run_module(command, run_name="__main__", alter_sys=True)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Interrupt all processes and wait for them; kill those that do not end, or all if interrupted once more."""
    for process in processes:
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + _SECONDS_TO_STOP
    with suppress(KeyboardInterrupt):
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
