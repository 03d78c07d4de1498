"""The interface of executors, and the tasks that they run."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

COMMAND = "direct_hifimamba.cli"
"""Module that an executor calls with the arguments of a task."""

_LOG_LINES = 20


@dataclass(frozen=True)
class Task:
    """A command line of one stage of a benchmark, for one run.

    Attributes
    ----------
    name : str
        Shown in messages; unique among tasks that are run together.
    arguments : tuple of str
        Arguments of `direct-hifimamba`, which ends with exit status 0 when the task is done.
    folder : Path
        Folder of the run.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path

    @property
    def log(self) -> Path:
        """File to which the executor appends the output of the command."""
        return self.folder / "train.log"

    def failure(self, status: int) -> str:
        """Return how the command ended, from its exit status (minus the number of a signal) and the end of its log."""
        reason = f"ended with exit status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            reason += ", as happens when memory runs out"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join([f"direct-hifimamba {' '.join(self.arguments)} {reason}.", *lines])


class Executor(Protocol):
    """Runs tasks, several at a time."""

    def run(self, stage: str, tasks: Sequence[Task], show_progress: Callable[[], None]) -> dict[str, str]:
        """Run all tasks to their end.

        Parameters
        ----------
        stage : str
            `run` or `score`.
        tasks : sequence of Task
            Their folders are made where they are missing.
        show_progress : callable
            Called about once a second.

        Returns
        -------
        dict
            By the name of each task that failed, the reason.

        Raises
        ------
        KeyboardInterrupt
            After all tasks have ended. They receive a signal first, on which a training writes a checkpoint.
        """
        ...
