"""Which parameters decay, in an optimizer with DIRECT's schedule, and through the engine's training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from direct.data.lr_scheduler import WarmupMultiStepLR
from direct.engine import Engine
from omegaconf import OmegaConf
from torch import nn
from torch.optim import AdamW

from direct_hifimamba.nn.hifimamba.hifimamba_engine import HiFiMambaV2Engine
from direct_hifimamba.training.learning_rate import CosineSchedule
from direct_hifimamba.training.weight_decay import exclude_from_weight_decay
from tests.helpers import replace_training_loop, tiny_network

DECAY = 0.5
VECTORS = ("bias", "norm.weight", "A_log", ".D")


def _schedule(optimizer: AdamW) -> WarmupMultiStepLR:
    return WarmupMultiStepLR(optimizer, [2, 4], 0.1, warmup_factor=1 / 3, warmup_iterations=2)


def _optimizer(*modules: nn.Module) -> AdamW:
    """As DIRECT's `train` makes it: a group for each model."""
    groups = [{"params": module.parameters(), "lr": 0.1 / (index + 1)} for index, module in enumerate(modules)]
    return AdamW(groups, weight_decay=DECAY)


def _is_vector(name: str) -> bool:
    return name.endswith(VECTORS)


def test_only_matrices_shrink_without_gradients() -> None:
    model = tiny_network(data_consistency="proximal")
    optimizer = _optimizer(model)
    exclude_from_weight_decay(optimizer, _schedule(optimizer), model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    shrunk = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    for name, parameter in model.named_parameters():
        factor = 1 - rate * DECAY if name in shrunk else 1
        torch.testing.assert_close(parameter, factor * before[name])
        # A bias that starts at 0 would not shrink either way.
        assert (name in shrunk) == (parameter.ndim > 1 and not _is_vector(name)), name
    assert any(name.endswith("A_log") for name in before)
    assert any(name.endswith("step_size_bias") for name in before)


def test_every_parameter_stays_with_its_learning_rate() -> None:
    model, other = tiny_network(), nn.Linear(3, 3)
    plain, spared = _optimizer(model, other), _optimizer(model, other)
    schedules = [_schedule(plain), _schedule(spared)]
    exclude_from_weight_decay(spared, schedules[1], model)

    def rates(optimizer: AdamW) -> dict[int, float]:
        pairs = [(id(parameter), group["lr"]) for group in optimizer.param_groups for parameter in group["params"]]
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    for _ in range(6):
        assert rates(spared) == rates(plain)
        for optimizer, schedule in zip((plain, spared), schedules, strict=True):
            optimizer.step()
            schedule.step()
    exclude_from_weight_decay(spared, schedules[1], model)  # nothing is left to do
    assert [group["weight_decay"] for group in spared.param_groups] == [DECAY, DECAY, 0.0]
    assert len(spared.param_groups[1]["params"]) == 2


@pytest.mark.parametrize("schedule", ["steps", "cosine", "--cosine-schedule"])
@pytest.mark.parametrize(("decayed", "decays"), [("all", [DECAY]), ("matrices", [DECAY, 0.0])])
def test_the_engine_follows_the_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, schedule: str, decayed: str, decays: list[float]
) -> None:
    """Also after a training has been resumed."""
    groups: list[list[dict[str, Any]]] = []
    states: list[list[float]] = []

    def training_loop(engine: Engine, *_: object, **__: object) -> None:
        optimizer = engine._require_optimizer()
        for parameter in engine.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        groups.append([dict(group) for group in optimizer.param_groups])
        optimizer.step()
        states.append([float(optimizer.state[parameter]["step"]) for parameter in engine.model.parameters()])
        engine._Engine__lr_scheduler.step()
        engine._require_checkpointer().save(len(groups))

    replace_training_loop(monkeypatch, training_loop)
    own_schedule = "cosine" if schedule == "cosine" else "steps"
    model = {"learning_rate_schedule": own_schedule, "decayed_parameters": decayed}
    training = {"num_iterations": 8, "lr_warmup_iter": 2, "checkpointer": {"checkpoint_steps": 1}}
    cfg = OmegaConf.create({"model": model, "training": training})
    for _ in range(2):
        engine = HiFiMambaV2Engine(cfg, nn.Linear(2, 2), "cpu", None, None)
        optimizer = _optimizer(engine.model)
        has_option = schedule == "--cosine-schedule"
        given = CosineSchedule(optimizer, cfg.training) if has_option else _schedule(optimizer)
        engine.train(optimizer, given, [], tmp_path, resume=True)
    for begun in groups:
        assert [group["weight_decay"] for group in begun] == decays
        assert len({group["lr"] for group in begun}) == 1
    assert groups[1][0]["lr"] > groups[0][0]["lr"]  # the warm-up has gone on
    assert states == [[1, 1], [2, 2]]
