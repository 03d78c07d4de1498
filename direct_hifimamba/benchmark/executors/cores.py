"""The number of processor cores that a process may use."""

import os

CORES = "DIRECT_HIFIMAMBA_CORES"
"""Environment variable with the number of cores, set by the local executor."""

_MAX_WORKERS = 16


def available_cores() -> int:
    """Return the number of cores of this process: its share of the local executor, of Slurm, or of the system."""
    for name in (CORES, "SLURM_CPUS_PER_TASK"):
        if name in os.environ:
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers() -> int:
    """Return the number of processes that load data beside the one that trains."""
    return min(available_cores() - 1, _MAX_WORKERS)
