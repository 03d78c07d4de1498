"""Executors of the stages of a benchmark: this machine or a Slurm cluster, with the same command lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from direct_hifimamba.benchmark.executors.executor import Executor, Task
from direct_hifimamba.benchmark.executors.local import LocalExecutor

EXECUTORS = ("local", "slurm")

__all__ = ["EXECUTORS", "Executor", "Task", "make_executor"]


def make_executor(
    name: str, folder: Path, device: str = "cpu", jobs: int | None = None, options: Mapping[str, Any] | None = None
) -> Executor:
    """Return an executor.

    Parameters
    ----------
    name : str
        `local` or `slurm`.
    folder : Path
        Output folder of the benchmark.
    device : str
        `cpu` or `cuda`.
    jobs : int, optional
        Number of tasks at the same time; default: one per GPU or core, and as many as Slurm allows.
    options : mapping, optional
        Options of `sbatch`, see :class:`direct_hifimamba.benchmark.executors.slurm.SlurmExecutor`.

    Raises
    ------
    ImportError
        If submitit is needed and not installed.
    ValueError
        If the device or Slurm is not available.
    """
    if name == "local":
        return LocalExecutor(device, jobs)
    from direct_hifimamba.benchmark.executors.slurm import SlurmExecutor  # needs the extra `slurm`

    return SlurmExecutor(folder / "slurm", jobs, options or {})
