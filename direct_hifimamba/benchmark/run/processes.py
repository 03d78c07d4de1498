"""Processes that start at once: forks of one that has imported DIRECT, which takes longer than a short training."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

THREADS = 1
"""Threads of PyTorch, as many as DIRECT trains with."""

ENVIRONMENT = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
"""Of all processes."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["direct_hifimamba.training.direct_command", "direct_hifimamba.nn.hifimamba.hifimamba_engine"]
)

_SECONDS_BETWEEN_LOOKS = 0.05

# Two threads that ask for the end of one process would take it from each other.
_GUARD = Lock()


class _Descriptor:
    """An open file of this process, for another one to inherit."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._number)

    def __setstate__(self, duplicate: Any) -> None:
        self._number = duplicate.detach()


def start_process(target: Callable[..., object], arguments: Sequence[object], daemon: bool = False) -> BaseProcess:
    """Call `target(*arguments)` in a process of its own; `target` is a function of a module.

    A daemon ends with this process.
    """
    process = _CONTEXT.Process(target=target, args=tuple(arguments), daemon=daemon)
    with _GUARD, mock.patch.dict(os.environ, ENVIRONMENT):
        process.start()
    return process


def start_command(
    main: Callable[[Sequence[str]], object], arguments: Sequence[str], log: Path, kept_open: int
) -> BaseProcess:
    """Call `main(arguments)` in a process and a session of its own, so that Ctrl-C does not reach it.

    Parameters
    ----------
    main : callable
        Of a module.
    arguments : sequence of str
    log : Path
        File to which everything that the process prints is appended.
    kept_open : int
        File descriptor that the process keeps open as long as it lives.
    """
    return start_process(_run, (main, list(arguments), log, _Descriptor(kept_open)))


def wait_for(process: BaseProcess, timeout: float | None = None) -> int | None:
    """Exit status of a process, negative that of a signal; None if it has not ended within `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with _GUARD:
            status = process.exitcode
        if status is not None or (deadline is not None and time.monotonic() >= deadline):
            return status
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def send_signal(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a process, unless it has ended."""
    with _GUARD:
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, number)


def _run(main: Callable[[Sequence[str]], object], arguments: Sequence[str], log: Path, _: _Descriptor) -> None:
    os.setsid()
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    main(arguments)
