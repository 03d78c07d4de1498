"""Processes that start quickly, as forks of one that has imported DIRECT."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

THREADS = 1
"""Threads of PyTorch, as many as DIRECT trains with."""

ENVIRONMENT = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
"""Of all processes."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "direct_hifimamba.benchmark.benchmark",
        "direct_hifimamba.nn.hifimamba.hifimamba_engine",
        "direct_hifimamba.training.direct_command",
    ]
)


def start_process(target: Callable[..., object], arguments: Sequence[object], daemon: bool = False) -> BaseProcess:
    """Call `target(*arguments)` in a process of its own; `target` is a function of a module.

    A daemon ends with this process.
    """
    process = _CONTEXT.Process(target=target, args=tuple(arguments), daemon=daemon)
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)  # inherited; DIRECT sets it too, but only after PyTorch has been imported
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process
