"""Tests of `direct-hifimamba config compose`."""

from pathlib import Path

import pytest
from direct.environment import setup_common_environment
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.training.compose import compose

BASE = """
parameters:
  mask: ???
  transforms: &transforms
    padding_eps: 0.0
    sensitivity_map_estimation: {sensitivity_maps_type: unit}
training:
  datasets:
    - name: FastMRI
      transforms:
        <<: *transforms
        masking: ${parameters.mask}
  lr: 0.1
  batch_size: 3
  loss:
    losses:
      - {function: l1_loss, multiplier: 1.0}
      - {function: ssim_loss, multiplier: 2.0}
validation:
  datasets:
    - {name: FastMRI, pass_mask: true, transforms: {masking: null}}
  metrics: [fastmri_psnr]
inference:
  dataset: {name: CalgaryCampinas, crop_outer_slices: true, transforms: {masking: null}}
"""
MASK = "parameters: {mask: {name: FastMRIRandom, accelerations: [4], center_fractions: [0.08]}}"
MODEL = """
model: {model_name: hifimamba.hifimamba.HiFiMambaV2, hidden_channels: 8, blocks_per_stage: [1]}
training: {lr: 0.2}
"""
UNET = """
model: {model_name: unet.unet_2d.Unet2d, num_filters: 2}
additional_models:
  sensitivity_model: {model_name: unet.unet_2d.UnetModel2d, num_filters: 2}
"""


@pytest.fixture
def parts(tmp_path, monkeypatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    paths = {name: Path(f"{name}.yaml") for name in ("base", "mask", "model")}
    for path, text in zip(paths.values(), (BASE, MASK, MODEL), strict=True):
        path.write_text(text)
    return paths


def _compose(parts: dict[str, Path], *overrides: str):
    return compose([parts["base"], parts["mask"], parts["model"]], overrides)


def test_later_files_win_key_by_key(parts):
    config = _compose(parts)
    assert config.training.lr == 0.2
    assert config.training.batch_size == 3
    assert compose([parts["model"], parts["mask"], parts["base"]]).training.lr == 0.1
    Path("losses.yaml").write_text("training: {loss: {losses: [{function: l2_loss}]}}")
    losses = compose([*parts.values(), Path("losses.yaml")]).training.loss.losses
    assert losses == [{"function": "l2_loss", "multiplier": 1.0}]  # DIRECT does not train without the latter


def test_references_are_resolved_and_parameters_left_out(parts):
    config = _compose(parts)
    assert "parameters" not in config
    masking = config.training.datasets[0].transforms.masking
    assert masking == {"name": "FastMRIRandom", "accelerations": [4], "center_fractions": [0.08]}
    assert _compose(parts, "training.lr=${training.batch_size}").training.lr == 3
    with pytest.raises(ValueError, match=r"cannot be resolved: .* parameters\.mask"):
        compose([parts["base"], parts["model"]])
    with pytest.raises(ValueError, match="cannot be resolved: Interpolation key 'nowhere' not found"):
        _compose(parts, "training.lr=${nowhere}")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.lr=1e-3", 1e-3),
        ("training.datasets.0.transforms.padding_eps=0.5", 0.5),
        ("training.loss.losses.1.multiplier=3", 3),
        ("validation.metrics=[fastmri_ssim, fastmri_nmse]", ["fastmri_ssim", "fastmri_nmse"]),
        ("training.loss.crop=null", None),
        ("training.optimizer=AdamW(eps=1e-6)", "AdamW(eps=1e-6)"),
        ("inference.dataset.transforms.cropping.image_center_crop=true", True),
    ],
)
def test_overrides_reach_every_place(parts, override, value):
    assert OmegaConf.select(_compose(parts, override), override.split("=")[0]) == value


def test_the_last_override_wins(parts):
    assert _compose(parts, "training.lr=1", "training.lr=2").training.lr == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # A key is misspelt at every level that DIRECT has.
        ("model.scan_folds=2", "no longer has scan_folds; revision 8c8114b is the last that had it"),
        ("trainin.lr=1", "The section is 'trainin', which DIRECT does not know; nearest: training"),
        ("training.lrr=1", "The key of training is 'lrr', .*; nearest: lr"),
        ("training.loss.crp=null", "The key of training.loss is 'crp', .*; nearest: crop"),
        ("training.checkpointer.steps=3", "The key of training.checkpointer is 'steps', .*: checkpoint_steps"),
        ("training.loss.losses.1.multiplyer=3", "The key of training.loss.losses.1 is 'multiplyer', .*: multiplier"),
        ("training.regularizers=[{function: hfen_l1}]", "training.regularizers has the entry .*'hfen_l1'.*names"),
        ("training.datasets.0.pass_maks=1", "The key of training.datasets.0 is 'pass_maks', .*: pass_mask"),
        ("training.datasets.0.transforms.paddin_eps=1", "datasets.0.transforms is 'paddin_eps', .*: padding_eps"),
        (
            "training.datasets.0.transforms.masking.acceleration=[4]",
            "The key of training.datasets.0.transforms.masking is 'acceleration', .*; nearest: accelerations",
        ),
        (
            "validation.datasets.0.transforms.cropping.image_centre_crop=true",
            "validation.datasets.0.transforms.cropping is 'image_centre_crop', .*; nearest: image_center_crop",
        ),
        (
            "inference.dataset.transforms.sensitivity_map_estimation.gaussian=1",
            "inference.dataset.transforms.sensitivity_map_estimation is 'gaussian', .*sensitivity_maps_gaussian",
        ),
        ("inference.dataset.pass_attrs=true", "The key of inference.dataset is 'pass_attrs'"),  # of FastMRI alone
        ("model.hidden_channel=8", "The key of model is 'hidden_channel', .*; nearest: hidden_channels"),
        ("logging.tensorboard.num_image=3", "The key of logging.tensorboard is 'num_image', .*: num_images"),
        ("physics.forward=fft2", "The key of physics is 'forward', .*; nearest: forward_operator"),
        # Names that DIRECT looks up, some of them after hours.
        ("model.model_name=unet.unet_2d.Net", "model.model_name is 'unet.unet_2d.Net'; DIRECT has no such model"),
        ("training.datasets.0.name=FastMR", "training.datasets.0.name is 'FastMR', .*; nearest: FastMRI"),
        ("training.loss.losses.0.function=l1_los", "losses.0.function is 'l1_los', .*; nearest: l1_loss"),
        ("validation.metrics=[fastmri_psn]", "validation.metrics is 'fastmri_psn', .*; nearest: fastmri_psnr"),
        ("training.optimizer=AdamWW(eps=1)", "training.optimizer is 'AdamWW', .*; nearest: AdamW"),
        ("training.datasets.0.transforms.masking.name=Randon", r"masking.name is 'Randon', .*; nearest: Random"),
        # Values.
        ("training.lr=fast", "training.lr: Value 'fast' of type 'str' could not be converted to Float"),
        (
            "training.datasets.0.transforms.sensitivity_map_estimation.sensitivity_maps_type=units",
            "sensitivity_maps_type: Invalid value 'units', expected one of .*UNIT",
        ),
        ("training.datasets.0.transforms={}", "training.datasets.0.transforms.masking.name is missing"),
        ("model.hidden_channels=7", "model: hidden_channels is 7; expected an even number"),
        ("model.patch_size=two", "model.patch_size: Value 'two' of type 'str' could not be converted to Integer"),
        (
            "model.learning_rate_schedule=linear",
            "learning_rate_schedule is 'linear'; expected one of steps, cosine, paper",
        ),
        ("model=null", "There is no section 'model'; merge a file that has it"),
        ("training=3", "training is 3; expected keys with values"),
        ("training.datasets=[3]", "training.datasets.0 is 3; expected keys with values"),
        ("training.loss.losses=[l1_loss]", "training.loss.losses.0 is 'l1_loss'; expected keys with values"),
        # Overrides that lead nowhere.
        ("training.datasets.1.name=FastMRI", "The override 'training.datasets.1.name=FastMRI' cannot be applied: list"),
        ("training.lr={", "The override 'training.lr={' cannot be applied: "),
    ],
)
def test_what_does_not_fit_is_an_error(parts, override, message):
    with pytest.raises(ValueError, match=message):
        _compose(parts, override)


def test_additional_models_are_checked(parts):
    paths = [parts["base"], parts["mask"], Path("unet.yaml")]
    paths[2].write_text(UNET)
    compose(paths)
    with pytest.raises(ValueError, match=r"additional_models.sensitivity_model is 'num_filter', .*: num_filters"):
        compose(paths, ["additional_models.sensitivity_model.num_filter=2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {lr: 1", "broken.yaml is not valid YAML: "),
        ("\udc93NUMPY", "broken.yaml is not valid YAML: 'utf-8' codec"),
        ("training: {lr: 1}\ntraining: {lr: 2}", "broken.yaml is not valid YAML: (?s:.)*duplicate key"),
        ("", "broken.yaml has no keys; expected YAML such as 'model: ...'"),
        ("- model", "broken.yaml has no keys; expected YAML such as 'model: ...'"),
    ],
)
def test_malformed_files_are_errors(parts, text, message):
    Path("broken.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        compose([*parts.values(), Path("broken.yaml")])


def test_output_is_deterministic_says_its_parts_and_loads_in_direct(parts, capsys, monkeypatch, tmp_path):
    words = ["config", "compose", str(parts["base"].absolute()), "mask.yaml", "model.yaml", "training.lr=0.3"]
    cli.main(words)
    printed = capsys.readouterr().out
    cli.main([*words, "--output", "new/folder/out.yaml"])
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "--output", "./mask.yaml"])
    assert "mask.yaml would replace the input mask.yaml; choose another output" in capsys.readouterr().err
    assert Path("new/folder/out.yaml").read_text() == printed
    assert capsys.readouterr().out == ""
    header = (
        "# Composed by direct-hifimamba config compose of\n# base.yaml\n# mask.yaml\n# model.yaml\n# training.lr=0.3\n"
    )
    assert printed.startswith(header)
    assert OmegaConf.load("new/folder/out.yaml") == _compose(parts, "training.lr=0.3")

    monkeypatch.setattr("direct.environment.setup_logging", lambda *_: None)
    environment = setup_common_environment("run", tmp_path, Path("new/folder/out.yaml"), "cpu", 0, False)
    assert environment.cfg.training.lr == 0.3
    assert environment.engine.model.config.hidden_channels == 8


def test_what_is_wrong_is_one_line_and_writes_nothing(parts, capsys):
    for part, word in (("nowhere.yaml", "nowhere.yaml"), ("training.lrr=1", "lrr")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["config", "compose", *map(str, parts.values()), part, "--output", "out.yaml"])
        error = capsys.readouterr().err
        assert error.startswith("direct-hifimamba: error: ")
        assert word in error
        assert error.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {path.name for path in parts.values()}


def test_our_data_sets_are_known_with_models_of_direct(parts, monkeypatch):
    monkeypatch.delattr("direct.data.datasets_config.SimulatedMultiCoilConfig", raising=False)
    Path("unet.yaml").write_text(UNET)
    data_set = "training.datasets=[{name: SimulatedMultiCoil, num_coils: [4, 6], transforms: {masking: null}}]"
    config = compose([parts["base"], parts["mask"], Path("unet.yaml")], [data_set])
    assert config.training.datasets[0].num_coils == [4, 6]
