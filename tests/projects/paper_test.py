"""Tests of the paper's protocol: its configurations, which train on look-alikes of the data sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from direct.train import setup_train

from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.data.prepare import prepare
from direct_hifimamba.data.protocol import Settings
from direct_hifimamba.nn.hifimamba.hifimamba_engine import HiFiMambaV2Engine
from direct_hifimamba.training.compose import compose, to_yaml
from tests.data import lookalikes
from tests.projects.hifimamba_test import PROJECT, ROOT, in_process

__all__ = ["in_process"]

MAGNITUDE = {"kspace": SIMULATED, "size": (32, 32)}


class Case(NamedTuple):
    """A data set in the paper's protocol: where its data come from, and what is special about it."""

    build: Callable[[Path], Any]
    data_set: str
    options: dict[str, Any]
    mask: str
    learning_rate: float
    blocks: tuple[int, ...] = (2,) * 6
    weight_decay: float = 0.001


CASES = {
    "fastmri_knee_singlecoil": Case(
        lookalikes.fastmri, "fastmri", MAGNITUDE | {"reconstruction": "rss"}, "equispaced_4x", 1e-3
    ),
    "calgary_campinas": Case(
        lambda root: lookalikes.calgary_campinas(root, num_slices=62),
        "calgary-campinas",
        MAGNITUDE,
        "random_4x",
        5e-3,
        (2,) * 8,
        0.01,
    ),
    "acdc": Case(lookalikes.acdc, "acdc", {"size": (32, 32)}, "radial_16x", 1e-3),
    "prostate158": Case(lookalikes.prostate158, "prostate158", {"size": (32, 32)}, "random_4x", 1e-3),
    "m4raw": Case(lambda root: lookalikes.m4raw(root, num_slices=4), "m4raw", {}, "equispaced_8x", 8e-4),
}


@pytest.mark.filterwarnings("ignore:Estimation of sensitivity map of Single-coil data")
@pytest.mark.parametrize("name", CASES)
def test_every_configuration_trains(name, in_process, monkeypatch, tmp_path):
    case = CASES[name]
    parts = [PROJECT / f"{part}.yaml" for part in ("common", "paper", f"{name}/configs/paper", f"masks/{case.mask}")]
    config = compose(parts)
    model, training = config.model, config.training
    assert (training.optimizer, training.lr, training.weight_decay) == ("AdamW", case.learning_rate, case.weight_decay)
    assert (training.batch_size, training.gradient_clipping) == (4, 0.0)
    assert tuple(model.blocks_per_stage) == case.blocks
    assert training.lr_warmup_iter == (0 if name == "m4raw" else 0.05 * training.num_iterations)
    assert model.decayed_parameters == ("all" if name == "m4raw" else "matrices")
    assert model.get("coil_mode", "sense") == ("channels" if name == "m4raw" else "sense")

    case.build(tmp_path / "download")
    prepare(tmp_path / "download", tmp_path / "data", Settings.of(case.data_set, normalise_slices=True, **case.options))
    overrides = ["training.num_iterations=2", "training.lr_warmup_iter=1"]
    parts.append(ROOT / "configs" / "tiny.yaml")
    (tmp_path / "paper.yaml").write_text(to_yaml(compose(parts, overrides), parts, overrides))
    losses, iterate = [], HiFiMambaV2Engine._do_iteration

    def watch(engine: HiFiMambaV2Engine, data: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        assert 0.5 < data["target"].max() < 1 + 1e-4
        output = iterate(engine, data, *arguments, **options)
        losses.append({key: value.item() for key, value in output.data_dict.items()})
        return output

    monkeypatch.setattr(HiFiMambaV2Engine, "_do_iteration", watch)
    evaluation, options = next((tmp_path / "data").glob(f"*_{case.mask}")), [False, *[None] * 4]
    setup_train(
        "run",
        tmp_path / "data" / "train",
        evaluation,
        tmp_path,
        tmp_path / "paper.yaml",
        *options,
        "cpu",
        0,
        False,
        0,
        False,
        False,
    )
    assert len(losses) == 2
    for values in losses:
        assert 0 < values["l1_loss"] < 1
        assert all(map(math.isfinite, values.values()))
