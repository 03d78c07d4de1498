"""Tests of the cosine schedules: their values, their place in DIRECT's training, and their resumption."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from direct.config.defaults import TrainingConfig
from direct.data.lr_scheduler import WarmupMultiStepLR
from direct.engine import Engine
from direct.nn.unet.unet_engine import Unet2dEngine
from omegaconf import OmegaConf
from torch import nn
from torch.optim import SGD

from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config
from direct_hifimamba.nn.hifimamba.hifimamba_engine import HiFiMambaV2Engine
from direct_hifimamba.training.learning_rate import CosineSchedule, PaperSchedule
from tests.helpers import replace_training_loop

LR, WARM_UP, ITERATIONS = 0.3, 4, 12


def _optimizer() -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=LR)


def _steps(optimizer: SGD) -> WarmupMultiStepLR:
    """The schedule that DIRECT's `train` makes of lr_step_size 5 and lr_gamma 0.1."""
    return WarmupMultiStepLR(optimizer, [5, 10], 0.1, warmup_factor=1 / 3, warmup_iterations=WARM_UP)


def _expected(iterations: range) -> list[float]:
    """The cosine schedule's learning rates, from its formula."""
    warm_up = [min(1, 1 / 3 + 2 / 3 * iteration / WARM_UP) for iteration in iterations]
    decay = [(1 + math.cos(math.pi * iteration / ITERATIONS)) / 2 for iteration in iterations]
    return [LR * factor * other for factor, other in zip(warm_up, decay, strict=True)]


def _train(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    iterations: range,
    schedule: str | None = "cosine",
    num_iterations: int = ITERATIONS,
    has_option: bool = False,
) -> list[float]:
    """Learning rates in DIRECT's `Engine.train`, of which only the loop over data is replaced.

    Parameters
    ----------
    iterations : range
        Those to run, after which a checkpoint is written.
    schedule : str, optional
        Of our model; None: a model of DIRECT.
    has_option : bool
        Whether the schedule is that of `direct-hifimamba train --cosine-schedule`.
    """
    folder.mkdir(exist_ok=True)
    rates = []

    def training_loop(engine: Engine, datasets: object, start: int, *_: object, **__: object) -> None:
        assert start == iterations.start
        optimizer = engine._require_optimizer()
        for _ in iterations:
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            engine._Engine__lr_scheduler.step()
        engine._require_checkpointer().save(iterations[-1])

    training = TrainingConfig(num_iterations=num_iterations, lr_warmup_iter=WARM_UP)
    model = {"learning_rate_schedule": schedule, "decayed_parameters": "all"}
    cfg = OmegaConf.create({"model": model, "training": OmegaConf.structured(training)})
    engine_class = Unet2dEngine if schedule is None else HiFiMambaV2Engine
    engine = engine_class(cfg, nn.Linear(1, 1), "cpu", None, None)
    optimizer = SGD(engine.model.parameters(), lr=LR)
    with monkeypatch.context() as patches:  # undone at once: whoever called may have put another loop in its place
        replace_training_loop(patches, training_loop)
        given = CosineSchedule(optimizer, training) if has_option else _steps(optimizer)
        engine.train(optimizer, given, [], folder, resume=True)
    return rates


def test_values_follow_the_formula():
    optimizer = _optimizer()
    schedule = CosineSchedule(optimizer, TrainingConfig(num_iterations=ITERATIONS, lr_warmup_iter=WARM_UP))
    rates = []
    for _ in range(ITERATIONS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(_expected(range(ITERATIONS + 1)))
    assert rates[0] == pytest.approx(LR / 3)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_cosine_of_the_paper_ends_at_epoch_72_of_100_and_rises_again(monkeypatch, tmp_path):
    """One iteration per epoch: 5 of warm-up, and after the minimum 0.37 of the peak."""
    optimizer = _optimizer()
    schedule = PaperSchedule(optimizer, TrainingConfig(num_iterations=100, lr_warmup_iter=5))
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:6] == pytest.approx([LR * step / 5 for step in (1, 2, 3, 4, 5, 5)])
    assert rates[5:73] == pytest.approx([LR * (1 + math.cos(math.pi * epoch / 67)) / 2 for epoch in range(68)])
    assert min(rates) == rates[72] == pytest.approx(0)
    assert rates[72:] == sorted(rates[72:])
    assert rates[100] / LR == pytest.approx(0.37, abs=0.005)

    halves = [_train(monkeypatch, tmp_path, part, "paper") for part in (range(7), range(7, ITERATIONS))]
    assert halves[0][:WARM_UP] == pytest.approx([LR * step / WARM_UP for step in (1, 2, 3, 4)])
    assert [*halves[0], *halves[1]] == _train(monkeypatch, tmp_path / "uninterrupted", range(ITERATIONS), "paper")


def test_default_is_the_schedule_of_direct(monkeypatch, tmp_path):
    assert HiFiMambaV2Config().learning_rate_schedule == "steps"
    optimizer = _optimizer()
    schedule = _steps(optimizer)
    expected = []
    for _ in range(ITERATIONS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = _train(monkeypatch, tmp_path / "ours", range(ITERATIONS), "steps")
    assert ours == expected == _train(monkeypatch, tmp_path / "direct", range(ITERATIONS), None)
    assert ours != pytest.approx(_expected(range(ITERATIONS)))


@pytest.mark.parametrize("train", [_train, partial(_train, schedule=None, has_option=True)])
@pytest.mark.parametrize("first", [2, 7])
def test_resumed_training_has_the_same_rates(monkeypatch, tmp_path, train, first):
    rates = train(monkeypatch, tmp_path, range(first)) + train(monkeypatch, tmp_path, range(first, ITERATIONS))
    assert rates == pytest.approx(_expected(range(ITERATIONS)))
    assert rates == train(monkeypatch, tmp_path / "uninterrupted", range(ITERATIONS))


@pytest.mark.parametrize("first", [2, 7])
@pytest.mark.parametrize("schedule", ["steps", None])
def test_schedules_are_not_mixed(monkeypatch, tmp_path, schedule, first):
    """Before and after the end of the warm-up; with our model and with one of DIRECT."""
    _train(monkeypatch, tmp_path / "cosine", range(first), "cosine")
    with pytest.raises(ValueError, match="Unknown warmup method: that of the cosine schedule"):
        _train(monkeypatch, tmp_path / "cosine", range(first, ITERATIONS), schedule)
    _train(monkeypatch, tmp_path / "steps", range(first), schedule)
    with pytest.raises(
        ValueError, match="was trained with another learning-rate schedule, such as DIRECT's own; resume"
    ):
        _train(monkeypatch, tmp_path / "steps", range(first, ITERATIONS), "cosine")
    with pytest.raises(ValueError, match="was trained with another learning-rate schedule"):
        _train(monkeypatch, tmp_path / "cosine", range(first, ITERATIONS), "paper")


def test_cosine_cannot_be_prolonged(monkeypatch, tmp_path):
    _train(monkeypatch, tmp_path, range(2))
    with pytest.raises(ValueError, match=r"num_iterations is 24, but .* ends at iteration 12; resume with that, or"):
        _train(monkeypatch, tmp_path, range(2, 24), num_iterations=24)
