"""Runs of DIRECT side by side, each in processes of its own, that can be interrupted at any time and taken up again."""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Lock
from typing import IO

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from direct_hifimamba.benchmark.folder import RunFolder
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.inputs import DivergedError, check_predictions
from direct_hifimamba.benchmark.plan.specification import COSINE
from direct_hifimamba.benchmark.provenance import as_typed
from direct_hifimamba.benchmark.run.processes import send_signal, start_command, wait_for
from direct_hifimamba.files import replace_when_complete, set_aside
from direct_hifimamba.training.direct_command import COSINE_OPTION
from direct_hifimamba.training.direct_command import main as run_direct

_DIVERGED = "diverged"
_SECONDS_TO_STOP = 60
_SECONDS_BETWEEN_LOOKS = 1.0
_LOG_LINES = 20


class RunError(Exception):
    """A run failed; the others go on."""


class _Interrupted(Exception):  # noqa: N818 (no error)
    """The benchmark is being stopped."""


@dataclass(frozen=True)
class Run:
    """A training and its predictions.

    Attributes
    ----------
    name : str
        For the progress display.
    folder : RunFolder
    config : DictConfig
        For training and prediction.
    training_data : Path
    prediction_data : dict
        By acceleration.
    seed : int
    schedule : str
    device : str
    initialisation : Initialisation, optional
        By default, the weights begin as DIRECT draws them.
    """

    name: str
    folder: RunFolder
    config: DictConfig
    training_data: Path
    prediction_data: Mapping[str, Path]
    seed: int
    schedule: str
    device: str
    initialisation: Initialisation | None = None

    @property
    def iterations(self) -> int:
        """Of the training."""
        return int(self.config.training.num_iterations)

    @property
    def checkpoint(self) -> Path:
        """The last one."""
        return self.folder.checkpoint(self.iterations - 1)

    def is_trained(self) -> bool:
        """Whether the training has come to its end."""
        # DIRECT names a checkpoint here after it has written it.
        last_saved = self.checkpoint.parent / "last_model.txt"
        return last_saved.exists() and last_saved.read_text() == str(self.iterations - 1)

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.error is None and all(self.folder.predictions(name).is_dir() for name in self.prediction_data)

    @property
    def error(self) -> str | None:
        """Why the run failed, if it did."""
        return self.folder.failure.read_text(encoding="utf-8") if self.folder.failure.exists() else None

    @property
    def has_diverged(self) -> bool:
        """Whether it failed in a way that is a result: the same would come out again."""
        return (self.error or "").startswith(_DIVERGED)

    @property
    def iterations_done(self) -> int:
        """As far as the metrics that DIRECT writes while it trains tell."""
        if self.is_trained() or self.error is not None:
            return self.iterations
        try:
            lines = (self.folder.run / "metrics.json").read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["iteration"])
        except (OSError, IndexError, ValueError):  # not begun, or just being written
            return 0

    def set_aside_if_of_another_configuration(self) -> None:
        """Rename the folder if another configuration was trained there, such as one of another learning rate."""
        if self.folder.config.exists() and OmegaConf.load(self.folder.config) != self.config:
            aside = set_aside(self.folder.path)
            print(f"{self.name}: its configuration has changed; what was trained before is in {aside}")

    def training_command(self) -> list[str]:
        """Arguments of `direct-hifimamba`."""
        paths: list[str | Path] = ["train", self.folder.experiment, "--cfg", self.folder.config]
        paths += ["--training-root", self.training_data, "--validation-root", self.training_data]
        if self.initialisation is not None:
            paths += ["--initialization-checkpoint", self.folder.initialisation]
        if self.schedule == COSINE:
            paths.append(COSINE_OPTION)
        return [*_relative(paths), *self._common_options(), "--resume"]

    def prediction_command(self, acceleration: str, output: Path | None = None) -> list[str]:
        """Arguments of `direct-hifimamba`."""
        output = output or self.folder.predictions(acceleration)
        data = self.prediction_data[acceleration]
        paths: list[str | Path] = [
            "predict",
            output,
            "--cfg",
            self.folder.config,
            "--checkpoint",
            self.checkpoint,
            "--data-root",
            data,
        ]
        return [*_relative(paths), *self._common_options()]

    def _common_options(self) -> list[str]:
        workers = "0" if self.device == "cpu" else "4"
        return ["--device", self.device, "--seed", str(self.seed), "--num-gpus", "1", "--num-workers", workers]


def _relative(words: Sequence[str | Path]) -> list[str]:
    """Paths as one would type them here."""
    return [os.path.relpath(word) if isinstance(word, Path) else word for word in words]


class Runner:
    """Does runs, several at a time.

    Parameters
    ----------
    jobs : int
        How many runs go side by side.
    lock : file object
        What :func:`lock_folder` gives. The processes hold it as long as they live.
    """

    def __init__(self, jobs: int, lock: IO[str]) -> None:
        self._jobs = jobs
        self._lock = lock
        self._stopping = Event()
        self._processes: set[BaseProcess] = set()
        self._guard = Lock()  # of the two above
        self._generator = Lock()  # of PyTorch's random numbers

    def run(self, runs: Sequence[Run], description: str) -> None:
        """Do what is left to do of the runs; those that failed before are tried again, unless they diverged.

        Raises
        ------
        KeyboardInterrupt
            After the processes have ended, as DIRECT does on this signal: with a checkpoint, unless it comes between
            two iterations; the last one serves then.
        """
        for run in runs:
            run.set_aside_if_of_another_configuration()
        # Files of earlier failures would count as progress.
        waiting = [run for run in runs if not (run.is_finished or run.has_diverged)]
        for run in waiting:
            run.folder.failure.unlink(missing_ok=True)
        done = sum(run.iterations_done for run in runs)
        total = sum(run.iterations for run in runs)
        with (
            tqdm(total=total, initial=done, desc=description, unit="iteration", disable=not waiting) as bar,
            ThreadPoolExecutor(self._jobs) as pool,
        ):
            futures = [pool.submit(self._do, run) for run in waiting]
            try:
                pending = set(futures)
                while pending:
                    _, pending = wait(pending, timeout=_SECONDS_BETWEEN_LOOKS)
                    _show(bar, runs)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
            for future in futures:
                future.result()

    def _do(self, run: Run) -> None:
        try:
            try:
                self._train(run)
                for acceleration in run.prediction_data:
                    self._predict(run, acceleration)
            except _Interrupted:
                return
            except RunError:
                raise
            except Exception as error:  # whatever it is, the other runs go on
                raise RunError(f"{type(error).__name__}: {error}") from error
        except RunError as error:
            write_failure(run.folder, error)

    def _train(self, run: Run) -> None:
        if run.is_trained():
            return
        folder = run.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(folder.config) as partial:
            OmegaConf.save(run.config, partial)
        if run.initialisation is not None and not folder.initialisation.exists():
            with self._generator:
                run.initialisation.write(folder.initialisation, run.config, run.seed)
        self._call(run.training_command(), folder.log)
        if not run.is_trained():
            raise RunError(f"The training ended without its last checkpoint.\n{_tail(folder.log)}")

    def _predict(self, run: Run, acceleration: str) -> None:
        folder = run.folder.predictions(acceleration)
        if folder.exists():
            return
        partial = folder.with_name(f".{acceleration}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._call(run.prediction_command(acceleration, partial), run.folder.log)
        try:
            check_predictions(partial, run.prediction_data[acceleration])
        except DivergedError as error:
            shutil.rmtree(partial)
            raise RunError(f"{_DIVERGED} at {acceleration}: {error}") from error
        except ValueError as error:
            shutil.rmtree(partial)
            raise RunError(
                f"The predictions at {acceleration} failed a check: {error} The trained weights are kept, in "
                f"{run.checkpoint}; the next call repeats the predictions alone."
            ) from error
        partial.replace(folder)

    def _call(self, arguments: Sequence[str], log: Path) -> None:
        """Run a command to its end, with what it prints in `log`."""
        with self._guard:
            if self._stopping.is_set():
                raise _Interrupted
            process = start_command(run_direct, arguments, log, self._lock.fileno())
            self._processes.add(process)
        status = wait_for(process)
        assert status is not None
        with self._guard:
            self._processes.remove(process)
        if self._stopping.is_set():
            raise _Interrupted
        if status != 0:
            reason = f"ended with status {status}"
            if status < 0:
                reason = f"was ended by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                reason += ", as happens when memory runs out"
            raise RunError(f"{as_typed(arguments)} {reason}.\n{_tail(log)}")

    def _stop(self) -> None:
        """Interrupt all processes and wait for them; kill those that do not end, or all if interrupted once more."""
        with self._guard:
            self._stopping.set()
            processes = list(self._processes)
        for process in processes:
            send_signal(process, signal.SIGINT)
        deadline = time.monotonic() + _SECONDS_TO_STOP
        with suppress(KeyboardInterrupt):
            for process in processes:
                wait_for(process, max(0, deadline - time.monotonic()))
        for process in processes:
            send_signal(process, signal.SIGKILL)


def write_failure(folder: RunFolder, error: RunError) -> None:
    """Say in the folder of a run why it failed."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(folder.failure) as partial:
        partial.write_text(f"{error}\n", encoding="utf-8")


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])


def _show(bar: "tqdm[None]", runs: Sequence[Run]) -> None:
    progress = {run.name: run.iterations_done for run in runs}
    finished = sum(run.is_finished for run in runs)
    failed = sum(run.error is not None for run in runs)
    begun = [
        f"{run.name}: {progress[run.name]}/{run.iterations}"
        for run in runs
        if not run.is_finished and run.error is None and run.folder.log.exists()
    ]
    bar.n = sum(progress.values())
    bar.set_postfix_str(", ".join([f"{finished} of {len(runs)} done", *([f"{failed} failed"] * bool(failed)), *begun]))


@contextmanager
def lock_folder(folder: Path) -> Iterator[IO[str]]:
    """Keep a folder to oneself and the processes that inherit the file.

    Raises
    ------
    ValueError
        If another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"Another benchmark, or a process that it has left behind, is still at work in {folder}; wait for it, "
                "end it, or choose another --output."
            ) from error
        yield file
