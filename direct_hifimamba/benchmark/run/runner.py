"""One run of a benchmark: DIRECT trains and predicts; interrupted at any time, it resumes from the last checkpoint."""

import errno
import fcntl
import gc
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from direct_hifimamba.benchmark.folder import DIVERGED, RunFolder
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.specification import COSINE
from direct_hifimamba.benchmark.provenance import as_typed
from direct_hifimamba.benchmark.run.predictions import DivergedError, check_predictions
from direct_hifimamba.files import fill_folder, replace_when_complete, set_aside, write_text
from direct_hifimamba.training.direct_command import COSINE_OPTION, LAST_MODEL
from direct_hifimamba.training.direct_command import main as run_direct

_SPACE = 2**24
"""Bytes of free disk below which an error of DIRECT is one of space: PyTorch's does not say so."""


class RunError(Exception):
    """A run failed; others are not affected."""


class DirectError(RunError):
    """DIRECT failed; its log says why."""


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
    validation_data : Path, optional
        With which the model is evaluated while it trains, if the configuration has data sets for that.
    seed : int
    schedule : str
    device : str
    workers : int
        Processes that load data.
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
    workers: int
    initialisation: Initialisation | None = None
    validation_data: Path | None = None

    @property
    def iterations(self) -> int:
        """Number of iterations of the training."""
        return int(self.config.training.num_iterations)

    @property
    def checkpoint(self) -> Path:
        """Last checkpoint of the training."""
        return self.folder.checkpoint(self.iterations - 1)

    def is_trained(self) -> bool:
        """Return whether the training is complete."""
        # DIRECT names a checkpoint here after it has written it.
        last_saved = self.checkpoint.parent / LAST_MODEL
        return last_saved.exists() and last_saved.read_text() == str(self.iterations - 1)

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.folder.is_complete(self.prediction_data)

    @property
    def iterations_done(self) -> int:
        """Number of iterations that are done, from the metrics that DIRECT writes while it trains."""
        if self.is_trained() or self.folder.failure.exists():
            return self.iterations
        try:
            lines = (self.folder.run / "metrics.json").read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["iteration"])
        except (OSError, IndexError, ValueError):  # not begun, or just being written
            return 0

    def set_aside_if_of_another_configuration(self) -> None:
        """Rename the folder if another configuration was trained there, such as one of another learning rate."""
        if self.folder.config.exists():
            trained = OmegaConf.load(self.folder.config)
            if _without_intervals(trained) != _without_intervals(self.config):
                aside = set_aside(self.folder.path)
                print(f"{self.name}: its configuration has changed; what was trained before is in {aside}")

    def training_command(self) -> list[str]:
        """Return the arguments of `direct-hifimamba`."""
        arguments: list[str | Path] = ["train", self.folder.experiment, "--cfg", self.folder.config]
        arguments += ["--training-root", self.training_data, "--validation-root"]
        arguments.append(self.validation_data or self.training_data)
        if self.initialisation is not None:
            arguments += ["--initialization-checkpoint", self.folder.initialisation]
        if self.schedule == COSINE:
            arguments.append(COSINE_OPTION)
        return [*map(str, arguments), *self._common_options(), "--resume"]

    def prediction_command(self, acceleration: str, output: Path) -> list[str]:
        """Return the arguments of `direct-hifimamba`."""
        arguments = ["predict", output, "--cfg", self.folder.config, "--checkpoint", self.checkpoint]
        arguments += ["--data-root", self.prediction_data[acceleration]]
        return [*map(str, arguments), *self._common_options()]

    def _common_options(self) -> list[str]:
        options = {"device": self.device, "seed": self.seed, "num-gpus": 1, "num-workers": self.workers}
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _without_intervals(config: Any) -> DictConfig:
    """Return a configuration without what does not affect the weights: checkpoints, validation, and logs."""
    config = config.copy()
    for key in ("training.checkpointer", "training.validation_steps", "validation", "logging"):
        OmegaConf.update(config, key, None, merge=False, force_add=True)
    return config


def do_run(run: Run) -> None:
    """Finish a run in this process: train, predict, and check the predictions.

    On SIGINT, DIRECT writes a checkpoint and ends. If the signal comes between two iterations, it writes none, and the
    training resumes from the last one.

    Raises
    ------
    RunError
        If DIRECT fails, or predictions are wrong. Of the latter, `failure.txt` says why.
    ValueError
        If another process is working on this run.
    """
    run.folder.path.mkdir(parents=True, exist_ok=True)
    with lock_folder(run.folder.path):
        run.folder.failure.unlink(missing_ok=True)
        try:
            _train(run)
            for acceleration in run.prediction_data:
                _predict(run, acceleration)
        except DirectError:
            raise
        except RunError as error:
            with suppress(OSError):  # such as a full disk
                write_failure(run.folder, str(error))
            raise


def _train(run: Run) -> None:
    if run.is_trained():
        return
    folder = run.folder
    with replace_when_complete(folder.config) as partial:
        OmegaConf.save(run.config, partial)
    if run.initialisation is not None and not folder.initialisation.exists():
        run.initialisation.write(folder.initialisation, run.config, run.seed)
    _call(run, run.training_command())
    if not run.is_trained():
        raise RunError(f"The training ended without its last checkpoint; the log is {folder.log}.")


def _predict(run: Run, acceleration: str) -> None:
    folder = run.folder.predictions(acceleration)
    if folder.exists():
        return
    with fill_folder(folder) as partial:
        _call(run, run.prediction_command(acceleration, partial))
        try:
            check_predictions(partial, run.prediction_data[acceleration])
        except DivergedError as error:
            raise RunError(f"{DIVERGED} at {acceleration}: {error}") from error
        except ValueError as error:
            raise RunError(
                f"The predictions at {acceleration} failed a check: {error} The trained weights are kept, in "
                f"{run.checkpoint}; the next call repeats the predictions alone."
            ) from error


def _call(run: Run, arguments: Sequence[str]) -> None:
    """Call DIRECT in this process."""
    handlers = logging.root.handlers[:]  # to which DIRECT adds
    print(as_typed(arguments))
    try:
        run_direct(arguments)
    except SystemExit as error:
        if error.code:
            raise DirectError(f"{as_typed(arguments)} ended with exit status {error.code}.") from error
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(run.folder.path).free
        if getattr(error, "errno", None) == errno.ENOSPC or free < _SPACE:
            raise RunError(
                f"The disk of {run.folder.path} is full ({error}). Checkpoints up to now are kept: free some "
                "space, and the same command resumes."
            ) from error
        raise
    finally:
        for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
            logging.root.removeHandler(handler)
            handler.close()
        gc.collect()
        torch.cuda.empty_cache()


def write_failure(folder: RunFolder, reason: str) -> None:
    """Write why a run failed to its folder."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.failure, f"{reason}\n")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, without waiting.

    Raises
    ------
    ValueError
        If another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"Another benchmark, or a process that it has left behind, works in {folder}; wait until it ends, stop "
                "it, or choose another --output."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
