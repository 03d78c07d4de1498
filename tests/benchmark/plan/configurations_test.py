import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from direct_hifimamba.benchmark.plan.configurations import (
    compose_models,
    evaluation_settings,
    find_difference,
    is_centered,
    training_config,
)
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.training.compose import validate
from tests.benchmark.small_benchmark import CONFIGS, MASKS, write_specification


def load(folder: Path, **changes: Any) -> Specification:
    (folder / "data").mkdir(exist_ok=True)
    return Specification.load(write_specification(folder, **changes))


def test_every_acceleration_has_its_equal_share_of_the_training(tmp_path: Path) -> None:
    configs = compose_models(load(tmp_path))["U-Net"]
    config = training_config(configs, 600, 0.05, 0.004)
    validate(config)
    trained = [entry.transforms.masking.accelerations for entry in config.training.datasets]
    assert trained == [[options.acceleration] for options in MASKS.values()]
    assert (config.training.num_iterations, config.training.lr_warmup_iter, config.training.lr) == (600, 30, 0.004)
    assert 0 < config.training.checkpointer.checkpoint_steps < 600
    assert len(config.validation.datasets) == 0
    validated = training_config(configs, 600, 0.05, validations=4)
    assert [entry.text_description for entry in validated.validation.datasets] == [next(iter(MASKS))]
    assert validated.training.validation_steps == 150
    assert training_config(configs, 600, 0.05).training.lr == CONFIGS["common"]["training"]["lr"]
    assert len(next(iter(configs.values())).training.datasets) == 1  # left as it was


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("training.batch_size=2", "training.batch_size is 1 for HiFi-MambaV2 and 2 for U-Net"),
        ("training.loss.losses.0.function=ssim_loss", "training.loss.losses.0.function is 'l1_loss' for HiFi-MambaV2"),
        ("training.datasets.0.transforms.padding_eps=0.1", "training.datasets.0.transforms.padding_eps is 0.0"),
        ("inference.dataset.text_description=other", "inference.dataset.text_description is None"),
        ("inference.crop=header", "inference.crop is None"),
        ("validation.crop=header", "validation.crop is None"),
        ("training.lr_gamma=0.1", "training.lr_gamma is"),
        ("training.lr_step_size=7", "training.lr_step_size is"),
        ("training.regularizers=[hfen_l1]", "training.regularizers is"),
        (
            "additional_models.sensitivity_model.model_name=unet.unet_2d.UnetModel2d",
            "additional_models is None for HiFi-MambaV2",
        ),
        ("physics.forward_operator=fft2(centered=False)", "physics.forward_operator is 'fft2' for HiFi-MambaV2"),
    ],
)
def test_models_that_do_not_share_what_they_have_to_are_refused(tmp_path: Path, override: str, path: str) -> None:
    models = {
        "HiFi-MambaV2": {"configs": ["hifimamba.yaml"]},
        "U-Net": {"configs": ["unet.yaml"], "overrides": [override]},
    }
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        compose_models(load(tmp_path, models=models))
    assert str(error.value).startswith(path)
    assert "a fair comparison needs the same" in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("physics.forward_operator", "fft2(centered=False)"),
        ("inference.crop", "header"),
        ("inference.dataset.transforms.normalization.scale_percentile", 0.9),
    ],
)
def test_evaluation_settings_are_what_is_scored(tmp_path: Path, path: str, value: Any) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        config = OmegaConf.create(CONFIGS["common"])
        for key, setting in changes.items():
            OmegaConf.update(config, key, setting, force_add=True)
        (tmp_path / "changed.yaml").write_text(OmegaConf.to_yaml(config))
        configs = compose_models(load(tmp_path, configs=["changed.yaml"]))
        return evaluation_settings(configs["U-Net"]["equispaced_4x"])

    (tmp_path / "changed.yaml").touch()
    expected = settings()
    assert json.loads(json.dumps(expected)) == expected
    alike = {"inference.batch_size": 2, "inference.dataset.transforms.use_seed": True, "training.lr": 0.5}
    assert settings(**alike) == expected
    difference = find_difference(expected, settings(**{path: value}))
    assert difference is not None
    assert difference[0] == path.removeprefix("inference.").removeprefix("dataset.")
    assert difference[2] == value


def test_models_may_choose_their_optimiser(tmp_path: Path) -> None:
    overrides = ["training.lr=1e-4", "training.optimizer=AdamW", "training.gradient_clipping=1.0"]
    models = {"a": {"configs": ["unet.yaml"]}, "b": {"configs": ["unet.yaml"], "overrides": overrides}}
    configs = compose_models(load(tmp_path, models=models, baseline="a"))
    assert configs["b"]["equispaced_4x"].training.lr == 1e-4


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"parameters": {"mask": {"accelerations": [4, 8], "center_fractions": [0.08, 0.04]}}}, "in one data set"),
        ({"inference": {"dataset": {"transforms": {"masking": "${parameters.mask}"}}}}, "expected stored ones"),
        ({"training": {"datasets": []}}, "has 0 entries in training.datasets"),
        (
            {"inference": {"dataset": {"transforms": {"image_recon_type": "sense"}}}},
            "has image_recon_type 'sense' in inference",
        ),
        (
            {"inference": {"dataset": {"transforms": {"normalization": {"scale_percentile": None}}}}},
            "has scale_percentile: null in inference",
        ),
        ({"inference": None}, "has no section 'inference'"),
    ],
)
def test_configurations_that_would_compare_something_else_are_refused(
    tmp_path: Path, extra: dict[str, Any], message: str
) -> None:
    (tmp_path / "extra.yaml").write_text(yaml.safe_dump(extra))
    models = {"U-Net": {"configs": ["unet.yaml", "extra.yaml"]}}
    with pytest.raises(ValueError, match=f"U-Net at equispaced_4x.*{message}"):
        compose_models(load(tmp_path, models=models))


def test_a_learning_rate_is_given_or_searched(tmp_path: Path) -> None:
    search = {"learning_rates": [1e-3], "budget": {"iterations": 6}}
    specifications = load(tmp_path), load(tmp_path, search=search)
    common = tmp_path / "common.yaml"
    common.write_text(common.read_text().replace("lr: 0.001", "weight_decay: 0.1"))
    with pytest.raises(ValueError, match=r"at equispaced_4x has no training\.lr; add one, or a search"):
        compose_models(specifications[0])
    compose_models(specifications[1])


def test_no_model_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    models = {"a": {"configs": ["hifimamba.yaml"], "overrides": ["model.learning_rate_schedule=cosine"]}}
    with pytest.raises(ValueError, match=r"a at equispaced_4x has model\.learning_rate_schedule 'cosine'"):
        compose_models(load(tmp_path, models=models, baseline="a", schedule="steps"))
    compose_models(load(tmp_path, models=models, baseline="a", schedule="cosine"))


def test_accelerations_differ_in_their_masks_alone(tmp_path: Path) -> None:
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump({"training": {"weight_decay": 0.5}}))
    accelerations = {
        "equispaced_4x": ["equispaced_4x.yaml"],
        "equispaced_8x": ["equispaced_8x.yaml", "longer.yaml"],
    }
    with pytest.raises(ValueError, match=r"training.weight_decay is None .*4x and 0.5 for .*8x"):
        compose_models(load(tmp_path, accelerations=accelerations))


def test_centering_is_that_of_the_operators(tmp_path: Path) -> None:
    operators = ["physics.forward_operator=fft2(centered=False)", "physics.backward_operator=ifft2(centered=False)"]
    for overrides, expected in (([], True), (operators, False)):
        models = {"U-Net": {"configs": ["unet.yaml"], "overrides": overrides}}
        configs = compose_models(load(tmp_path, models=models))
        assert is_centered(configs["U-Net"]["equispaced_4x"].physics.forward_operator) == expected


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, None),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ("a.1.b", 2, 3)),
        ({"a": 1}, {"a": 1, "b": 2}, ("b", None, 2)),
        ({"a": 1, "b": 2}, {"a": 1}, ("b", 2, None)),
        ([1], [1, 2], ("", [1], [1, 2])),
        ({"a": {"b": 1}}, {"a": 1}, ("a", {"b": 1}, 1)),
    ],
)
def test_the_first_difference_is_found(first: Any, second: Any, difference: Any) -> None:
    assert find_difference(first, second) == difference
