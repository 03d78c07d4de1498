"""Tests of the files with which models are compared as in DIRECT's model zoo."""

import shutil
from pathlib import Path

import pytest

from direct_hifimamba.benchmark.plan.configurations import compose_models
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.training.compose import compose

PROJECTS = Path(__file__).parents[2] / "projects"
METRICS = ["calgary_campinas_ssim", "calgary_campinas_psnr", "calgary_campinas_vif", "fastmri_nmse"]


def test_specification_has_the_masks_and_metrics_of_the_zoo(tmp_path: Path) -> None:
    shutil.copytree(PROJECTS / "hifimamba", tmp_path / "projects" / "hifimamba")
    (tmp_path / "data" / "calgary_zoo").mkdir(parents=True)
    specification = Specification.load(tmp_path / "projects" / "hifimamba" / "calgary_campinas" / "zoo.yaml")
    assert (specification.splits.validation, specification.splits.test) == ("val", "val")
    assert (specification.budget.iterations, specification.warm_up, specification.schedule) == (500000, 0.002, "steps")
    for label, configs in compose_models(specification).items():
        assert set(configs) == {"calgarycampinas_5x", "calgarycampinas_10x"}
        for name, config in configs.items():
            masking = config.training.datasets[0].transforms.masking
            assert (masking.name, f"calgarycampinas_{masking.accelerations[0]}x") == ("CalgaryCampinas", name)
            assert config.inference.dataset.name == config.validation.datasets[0].name == "FastMRIWithMasks"
            assert config.inference.dataset.text_description == name
            assert config.inference.metrics == METRICS
            training = config.training
            assert training.lr == (0.0002 if label == "MambaRoll" else 0.0005)
            assert (training.batch_size, training.optimizer, training.weight_decay) == (1, "Adam", 0.0)
            # Without a benchmark, too:
            assert (training.num_iterations, training.lr_warmup_iter) == (500000, 1000)
            assert (training.lr_step_size, training.lr_gamma) == (50000, 0.2)
            assert "sensitivity_model" in config.additional_models
            assert config.physics.forward_operator == "fft2(centered=False)"


@pytest.mark.parametrize("acceleration", [5, 10])
def test_inference_is_that_of_the_zoo(acceleration: int) -> None:
    folder = PROJECTS / "hifimamba" / "calgary_campinas" / "configs"
    model = PROJECTS / "hifimamba" / "models" / "varnet.yaml"
    inference = compose([model, folder / f"inference_{acceleration}x.yaml"], ["training=null"]).inference
    dataset, transforms = inference.dataset, inference.dataset.transforms
    assert (dataset.name, dataset.crop_outer_slices) == ("CalgaryCampinas", True)
    assert transforms.masking == {"name": "CalgaryCampinas", "accelerations": [acceleration]}
    assert inference.metrics == METRICS
    # As deepinv takes for granted.
    assert (transforms.normalization.scaling_key, transforms.normalization.scale_percentile) == ("masked_kspace", 0.99)
    assert transforms.sensitivity_map_estimation.sensitivity_maps_gaussian == 0.7
