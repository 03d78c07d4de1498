"""Tests of `direct-hifimamba train`: its option, and that it can be repeated exactly."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from direct import train as direct_train
from direct.cli import cli as direct_cli
from direct.common import subsample
from direct.engine import Engine
from direct.utils import communication
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.benchmark.plan.configurations import compose_models, training_config
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Specification
from direct_hifimamba.benchmark.run.processes import start_command, wait_for
from direct_hifimamba.training import direct_command
from tests.benchmark.small_benchmark import write_data, write_specification


@pytest.mark.parametrize(
    ("arguments", "passed_on", "takes_cosine"),
    [
        (["train", "a", "--cosine-schedule", "--cfg", "b"], ["train", "a", "--cfg", "b"], True),
        (["train", "a", "--cfg", "b"], ["train", "a", "--cfg", "b"], False),
        (["predict", "a", "--cosine-schedule"], ["predict", "a", "--cosine-schedule"], False),
    ],
)
def test_command_takes_the_option_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], passed_on: list[str], takes_cosine: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["direct-hifimamba", *arguments])
    seen = []
    monkeypatch.setattr(direct_cli, "main", lambda: seen.append((sys.argv[1:], direct_train.setup_train)))
    monkeypatch.setattr(direct_train, "setup_train", direct_train.setup_train)  # to be restored
    direct_command.main(arguments)
    ((words, setup),) = seen
    assert words == passed_on
    # `torch.multiprocessing.spawn` pickles what every rank runs.
    setup = pickle.loads(pickle.dumps(setup))
    assert (setup.func, setup.args) == (direct_command.setup_train, (takes_cosine,))


def draw(mask_function: subsample.BaseMaskFunc, seed: int | None = None) -> torch.Tensor:
    return mask_function((32, 256, 2), seed=seed)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[torch.Tensor]]:
    """A function that gives masks that a training draws."""

    def train(name: str, seed: int, start_iter: int = 0, drawn_before: int = 0) -> list[torch.Tensor]:
        mask_function = subsample.build_masking_function(name, accelerations=[4], center_fractions=[0.08])
        masks: list[torch.Tensor] = []

        def training_loop(*_: object) -> None:
            for _ in range(8):
                masks.append(draw(mask_function))
                torch.rand(1)  # dropout

        def setup_train() -> None:
            torch.manual_seed(seed)
            torch.rand(drawn_before)  # an initialisation
            Engine.training_loop(None, [], start_iter)
            masks.append(draw(mask_function, 7))

        monkeypatch.setattr(direct_command, "_direct_training_loop", training_loop)
        monkeypatch.setattr(direct_command, "_direct_setup_train", setup_train)
        direct_command.setup_train(False)
        assert torch.equal(masks.pop(), draw(mask_function, 7))  # those with a seed are DIRECT's
        return masks

    return train


def same(masks: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(masks, others, strict=True))


@pytest.mark.parametrize("name", ["FastMRIRandom", "FastMRIEquispaced", "Gaussian2D", "VariableDensityPoisson"])
def test_masks_follow_the_seed(train: Callable[..., list[torch.Tensor]], name: str) -> None:
    masks = train(name, seed=3)
    assert same(masks, train(name, seed=3, drawn_before=5))  # another model
    assert not same(masks, train(name, seed=4))
    assert not same(masks, train(name, seed=3, start_iter=8))  # resumed
    assert not same(masks[:-1], masks[1:])
    assert subsample.BaseMaskFunc.__call__ is direct_command._direct_draw_mask  # as before
    assert Engine.training_loop is not direct_command._seeded_training_loop


def test_ranks_do_not_draw_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communication, "get_world_size", lambda: 2)
    seen = []
    monkeypatch.setattr(direct_command, "_direct_setup_train", lambda: seen.append(subsample.BaseMaskFunc.__call__))
    direct_command.setup_train(False)
    assert seen == [direct_command._direct_draw_mask]


@pytest.mark.slow
def test_a_training_can_be_repeated_exactly(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    configs = compose_models(Specification.load(write_specification(tmp_path)))
    data = str(tmp_path / "data" / "train")
    processes = {}
    for label, workers in (("HiFi-MambaV2", "0"), ("U-Net", "2")):
        config = training_config(configs[label], MIN_ITERATIONS, 0.0)
        for dataset in config.training.datasets:
            OmegaConf.update(dataset, "transforms.use_seed", False, force_add=True)
        path = tmp_path / f"{label}.yaml"
        OmegaConf.save(config, path)
        for run in ("once", "again"):
            arguments = ["train", str(tmp_path / label / run), "--cfg", str(path), "--name", "run", "--seed", "1"]
            arguments += ["--training-root", data, "--validation-root", data]
            arguments += ["--device", "cpu", "--num-workers", workers]
            with (tmp_path / f"{label} {run}.log").open("w") as log:
                processes[log.name] = start_command(cli.main, arguments, Path(log.name), log.fileno())
    for name, process in processes.items():
        assert wait_for(process) == 0, Path(name).read_text()
    for label in ("HiFi-MambaV2", "U-Net"):
        once, again = (
            torch.load(tmp_path / label / run / "run" / f"model_{MIN_ITERATIONS - 1}.pt")["model"]
            for run in ("once", "again")
        )
        for name, value in once.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)
