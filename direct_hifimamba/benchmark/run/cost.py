"""What models cost: parameters, operations, time and memory, each in a process of its own, on a real file."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from direct.environment import setup_common_environment
from direct.utils import str_to_class
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

# isort: split
from direct.data.datasets import build_dataset_from_input  # which cannot be imported before direct.environment
from direct.train import build_transforms_from_environment

from direct_hifimamba.benchmark.executors.cores import count_workers
from direct_hifimamba.benchmark.run.memory import extra_resident_bytes
from direct_hifimamba.benchmark.run.processes import THREADS, start_process
from direct_hifimamba.benchmark.score.results import Cost, Spread
from direct_hifimamba.nn.hifimamba.moe import RoutedExperts
from direct_hifimamba.nn.layers import selective_scan_2d
from direct_hifimamba.ops.library import definitions_only
from direct_hifimamba.ops.selective_scan import selective_scan
from direct_hifimamba.plugin import register_data_sets

_STEPS_TO_PEAK = 2
"""Training iterations up to the largest memory: the first one makes the state of the optimizer."""


def measure_costs(
    configs: Mapping[str, DictConfig],
    data_file: Path,
    rounds: int = 5,
    device: str = "cpu",
    training_file: Path | None = None,
) -> dict[str, Cost]:
    """Measure models.

    On a CPU they take turns, so that a disturbance of the machine affects all of them. A GPU holds one at a time.

    Parameters
    ----------
    configs : mapping of str to DictConfig
        Label -> complete configuration for DIRECT. Batches are made by its first training data set, single slices by
        that of the section `inference`.
    data_file : Path
        A file of the test split, with its mask, for the single slices.
    rounds : int
        Turns of every model, each an iteration of training and the reconstruction of a slice, after a warm-up.
    device : str
        `cpu` or `cuda`.
    training_file : Path, optional
        A file for the batches. Default: `data_file`.

    Returns
    -------
    dict of str to Cost
        In the order of `configs`. A model that fails has an error in its cost; the others are measured all the same.

    Raises
    ------
    ValueError
        If the device is not available.
    """
    files = (training_file or data_file, data_file)
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f"The device is {device}; expected cpu, or cuda where PyTorch finds a GPU.")
    costs: dict[str, Cost] = {}
    with tqdm(total=(rounds + 1) * len(configs), unit="turn") as bar:
        for labels in [list(configs)] if device == "cpu" else [[label] for label in configs]:
            with ExitStack() as stack:
                models = {label: stack.enter_context(_Model(configs[label], files, device)) for label in labels}
                for label, model in models.items():
                    bar.set_description(f"{label}: operations and memory")
                    model.set_up()
                    bar.update()
                for label, model in rounds * list(models.items()):
                    bar.set_description(f"{label}: time")
                    model.take_turn()
                    bar.update()
                costs |= {label: model.cost() for label, model in models.items()}
    return costs


class _Model:
    """A model in a process of its own, and what has been measured of it. Once it has failed it does nothing more."""

    def __init__(self, config: DictConfig, files: tuple[Path, Path], device: str) -> None:
        self._connection, its_connection = multiprocessing.Pipe()
        arguments = (its_connection, OmegaConf.to_container(config), files, device)
        self._process = start_process(_serve, arguments, daemon=True)
        its_connection.close()  # in this process: the end of the other one can then be seen
        self._facts: dict[str, int | None] = {}
        self._turns: list[dict[str, float]] = []
        self._error: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()
        self._process.close()
        self._connection.close()

    def set_up(self) -> None:
        """Measure everything but time."""
        self._ask("build")
        # Memory first: later on there is some that was freed but not given back to the system.
        for name in ("parameters", "active_parameters", "peak_memory_bytes", "macs"):
            self._facts[name] = self._ask(name)

    def take_turn(self) -> None:
        """Measure every time once."""
        self._turns.append(self._ask("seconds"))

    def _ask(self, question: str) -> Any:
        if self._error is not None:
            return None
        try:
            self._connection.send(question)
            answer, self._error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            reason = ", as happens when memory runs out" if code == -signal.SIGKILL else ""
            self._error = f"The process of the model ended with exit code {code}{reason}."
            return None
        if self._error is not None:
            self._process.terminate()  # it may hold much memory
        return answer

    def cost(self) -> Cost:
        """What has been found."""
        names = [] if self._error else self._turns[0]
        spreads = {name: Spread.of([turn[name] for turn in self._turns]) for name in names}
        return Cost(threads=THREADS, workers=count_workers(), **self._facts, **spreads, error=self._error)  # type: ignore[arg-type]


def _serve(connection: Connection, config: dict[str, Any], files: tuple[Path, Path], device: str) -> None:
    """Answer questions, names of members of :class:`_Workload`, with (answer, None) or (None, error)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    with suppress(OSError):  # Linux: should memory run out, this process is ended and not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process; DIRECT logs there)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as DIRECT
    workload = _Workload(config, files, device)
    while True:
        try:
            question = connection.recv()
        except EOFError:  # the parent process has ended
            return
        try:
            connection.send((getattr(workload, question)(), None))
        except (Exception, SystemExit) as error:  # DIRECT exits where a model cannot be found
            connection.send((None, f"{type(error).__name__}: {error}"))


class _Workload:
    """A model, a batch to train it on and a slice to reconstruct, in DIRECT's engine."""

    def __init__(self, config: dict[str, Any], files: tuple[Path, Path], device: str) -> None:
        self._config = config
        self._training_file, self._data_file = files
        self._device = device

    def build(self) -> None:
        """Build the engine, the optimizer and the inputs."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            OmegaConf.save(OmegaConf.create(self._config), path)
            register_data_sets()  # models of DIRECT do not
            env = setup_common_environment("", path.parent, path, self._device, 0, mixed_precision=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine has replaced it
        self._engine, self._training = env.engine, env.cfg.training

        self._training_slices = slices = self._load(env, env.cfg.training.datasets[0], self._training_file)
        self._indices = [(len(slices) // 2 + index) % len(slices) for index in range(self._training.batch_size)]
        self._batch = self._load_batch()
        slices = self._load(env, env.cfg.inference.dataset, self._data_file)
        self._slice = default_collate([slices[len(slices) // 2]])

        self._engine.ndim = slices.ndim
        self._engine.models_to_device()
        self._engine.models_training_mode()
        self._networks = [self._engine.model, *self._engine.models.values()]
        self._losses = self._engine.build_loss()
        self._regularizers = self._engine.build_regularizers(self._training.regularizers)
        self._optimizer: torch.optim.Optimizer = str_to_class("torch.optim", self._training.optimizer)(
            [{"params": network.parameters()} for network in self._networks],
            lr=self._training.lr,
            weight_decay=self._training.weight_decay,
        )

    def _load(self, env: Any, dataset: DictConfig, file: Path) -> Any:
        files: dict[str, Any] = {"data_root": file.parent, "filenames_filter": [file]}
        return build_dataset_from_input(build_transforms_from_environment(env, dataset), dataset, **files)

    def _load_batch(self) -> Any:
        return default_collate([self._training_slices[index] for index in self._indices])

    def parameters(self) -> int:
        """See :class:`Cost`."""
        return sum(map(count_parameters, self._networks))

    def active_parameters(self) -> int:
        """See :class:`Cost`."""
        return sum(map(count_active_parameters, self._networks))

    def macs(self) -> int:
        """See :class:`Cost`."""
        return count_macs(self._reconstruct)

    def peak_memory_bytes(self) -> int | None:
        """See :class:`Cost`."""

        def train() -> None:
            for _ in range(_STEPS_TO_PEAK):
                self._train()

        if self._device == "cpu":
            return extra_resident_bytes(train)
        train()
        return torch.cuda.max_memory_allocated(self._device)

    def seconds(self) -> dict[str, float]:
        """Return one measurement of every time, see :class:`Cost`."""
        return {
            "seconds_per_iteration": self._time(self._train),
            "seconds_per_batch": self._time(self._load_batch),
            "seconds_per_slice": self._time(self._reconstruct),
        }

    def _time(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def _train(self) -> None:
        """What `direct.engine.Engine.training_loop` does with a batch."""
        self._engine.models_training_mode()
        self._engine._do_iteration(self._batch, self._losses, regularizer_fns=self._regularizers)
        if self._training.gradient_clipping > 0:
            nn.utils.clip_grad_norm_(self._engine.model.parameters(), self._training.gradient_clipping)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def _reconstruct(self) -> None:
        self._engine.models_validation_mode()
        self._engine._do_iteration(self._slice)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_active_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters that act on one pixel.

    Experts that several blocks share count as often as a pixel can choose another one of them.
    """
    choices: dict[nn.ModuleList, int] = {}
    for module in network.modules():
        if isinstance(module, RoutedExperts):
            choices[module.experts] = choices.get(module.experts, 0) + 1
    idle = sum(
        max(0, len(experts) - chosen) * count_parameters(experts[0])  # all of one size
        for experts, chosen in choices.items()
    )
    return count_parameters(network) - idle


def count_macs(call: Callable[[], object]) -> int:
    """Return the multiply-accumulates of everything that `call` computes with PyTorch.

    Counted are matrix products and convolutions; Fourier transforms of n complex numbers as 5/2 n log2(n), those of
    radix 2; and the selective scan as it is defined, whatever its backend: per step and channel, four products for each
    state (step size and state matrix, decay and state, input matrix and drive, output matrix and state) and one each
    for drive, skip connection and gate. Other elementwise operations and normalisations are not counted, of any model.
    """
    scans = 0

    def counted_scan(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None, **kwargs: Any) -> Any:
        nonlocal scans
        scans += u.numel() * (4 * A.shape[1] + 1 + (D is not None) + (z is not None))
        return selective_scan(u, delta, A, B, C, D, z, **kwargs)

    # The counter sees neither the elementwise products of a scan nor what compiled kernels do.
    layers = vars(selective_scan_2d)
    layers["selective_scan"] = counted_scan
    try:
        with definitions_only(), FlopCounterMode(display=False, custom_mapping=_FFT_FLOPS) as counter:
            call()
    finally:
        layers["selective_scan"] = selective_scan
    return counter.get_total_flops() // 2 + scans


def _complex_fft_flops(shape: Sequence[int], axes: Sequence[int], *_: object, **__: object) -> int:
    return round(5 * math.prod(shape) * math.log2(math.prod(shape[axis] for axis in axes)))


_FFT_FLOPS = {torch.ops.aten._fft_c2c: _complex_fft_flops}  # the only ones in DIRECT
