"""Tests of projects/hifimamba: its files in every combination, in DIRECT, on look-alikes of the data sets."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import pytest
from direct.environment import setup_training_environment
from direct.predict import setup_inference_save_to_h5
from direct.train import setup_train
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.data.formats.hdf5 import kspace_shape
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.prepare import prepare
from direct_hifimamba.data.protocol import Settings, read_protocol
from direct_hifimamba.nn.hifimamba.hifimamba_engine import HiFiMambaV2JSSLEngine
from direct_hifimamba.training.compose import compose, to_yaml
from tests.data import lookalikes

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "projects" / "hifimamba"
MODELS = sorted(path.stem for path in (PROJECT / "models").iterdir())
MASKS = sorted(path.stem for path in (PROJECT / "masks").iterdir())


def test_model_is_the_recommended_one():
    model, recommended = (
        OmegaConf.load(path).model for path in (PROJECT / "models/hifimamba.yaml", ROOT / "configs/base.yaml")
    )
    assert model == recommended


class Case(NamedTuple):
    """A way to use a data set: the files of the project that are for it alone, and where its data come from."""

    configs: list[str]
    mask: str
    build: Callable[[Path], Any]
    data_set: str
    options: dict[str, Any]
    validation: str = "val"
    evaluation: str = "val"


SMALL = {"kspace": SIMULATED, "size": (32, 32)}
CASES = {
    "fastmri_knee_singlecoil": Case(
        ["fastmri_knee_singlecoil/configs/base"],
        "equispaced_4x",
        lookalikes.fastmri,
        "fastmri",
        {"slices": "central:2"},
    ),
    "fastmri_knee_singlecoil magnitude": Case(
        ["fastmri_knee_singlecoil/configs/base", "fastmri_knee_singlecoil/configs/magnitude"],
        "random_4x",
        lookalikes.fastmri,
        "fastmri",
        {"slices": "central:2", **SMALL},
    ),
    "fastmri_knee_multicoil": Case(
        ["fastmri_knee_multicoil/configs/base"],
        "equispaced_4x",
        lambda root: lookalikes.fastmri(root, "multi"),
        "fastmri",
        {"slices": "central:2", "coils": "multi"},
    ),
    "calgary_campinas": Case(
        ["calgary_campinas/configs/base"],
        "equispaced_4x",
        lambda root: lookalikes.calgary_campinas(root, num_slices=62, size=(36, 32)),
        "calgary-campinas",
        {},
    ),
    "calgary_campinas magnitude": Case(
        ["calgary_campinas/configs/base", "calgary_campinas/configs/magnitude"],
        "equispaced_4x",
        lambda root: lookalikes.calgary_campinas(root, num_slices=62),
        "calgary-campinas",
        SMALL,
    ),
    "acdc": Case(["acdc/configs/base"], "radial_16x", lookalikes.acdc, "acdc", {"size": (32, 32)}, "test", "test"),
    "prostate158": Case(
        ["prostate158/configs/base"],
        "random_4x",
        lookalikes.prostate158,
        "prostate158",
        {"size": (32, 32)},
        "val",
        "test",
    ),
    "m4raw": Case(
        ["m4raw/configs/base", "direct_training"],
        "equispaced_4x",
        lookalikes.m4raw,
        "m4raw",
        {"slices": "central:2"},
        "val",
        "test",
    ),
}

#: Every data set with ours, every model with one of a single coil and one of several.
COMBINATIONS = [
    (case, model)
    for case in CASES
    for model in MODELS
    if model == "hifimamba" or case == "m4raw" or (case == "acdc" and "mamba" not in model)
]

#: Sizes with which a training step takes milliseconds. Our model takes configs/tiny.yaml.
TINY = {
    "hifimamba": [],
    "hifimamba_v1": ["hidden_channels=8", "blocks_per_stage=[1]", "state_size=4"],
    "kikinet": ["num_iter=1", "image_unet_num_filters=2", "kspace_unet_num_filters=2"],
    "lpdnet": ["num_iter=1", "primal_unet_num_filters=2", "dual_unet_num_filters=2"],
    "mambarecon": ["hidden_channels=8", "blocks_per_stage=[1]", "state_size=4"],
    "mambaroll": ["num_rolls=1", "channels_per_scale=[3,2,2]", "state_size=4"],
    "recurrentvarnet": [
        "num_steps=2",
        "recurrent_hidden_channels=8",
        "initializer_channels=[4, 4, 4, 4]",
    ],
    "rim": ["hidden_channels=8", "length=2"],
    "uformer": ["embedding_dim=4", "encoder_depths=[1, 1, 1, 1]", "bottleneck_depth=1"],
    "unet": ["num_filters=2"],
    "varnet": ["num_layers=1", "regularizer_num_filters=2"],
    "vsharp": ["num_steps=1", "num_steps_dc_gd=1", "image_unet_num_filters=2", "initializer_channels=[4, 4, 4, 4]"],
}
SHORT = [
    "training.num_iterations=6",
    "training.lr_warmup_iter=2",
    "training.lr_step_size=4",
    "training.validation_steps=5",
    "training.checkpointer.checkpoint_steps=5",
]


def _parts(case: str, model: str, mask: str | None = None) -> list[Path]:
    names = ["common", *CASES[case].configs, f"masks/{mask or CASES[case].mask}", f"models/{model}"]
    return [PROJECT / f"{name}.yaml" for name in names]


def _tiny(case: str, model: str) -> tuple[list[Path], list[str]]:
    paths = _parts(case, model) + ([ROOT / "configs" / "tiny.yaml"] if model == "hifimamba" else [])
    return paths, [*SHORT, *(f"model.{override}" for override in TINY[model])]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep from DIRECT what outlives a run: log files and event files that stay open, and a signal handler."""
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("direct.environment.setup_logging", lambda *_: None)
    for writer in ("JSONWriter", "TensorboardWriter"):
        monkeypatch.setattr(f"direct.engine.{writer}", lambda path: type("Writer", (), {"write": lambda self: None})())
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the prepared look-alike of a case, made when it is first needed."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            case, root = CASES[name], tmp_path_factory.mktemp(name)
            case.build(root / "download")
            folders[name] = root / "data"
            prepare(root / "download", folders[name], Settings.of(case.data_set, **case.options))
        return folders[name]

    return get


@pytest.mark.parametrize("case", CASES)
def test_sections_state_what_direct_defaults_differently(case):
    config = compose(_parts(case, "hifimamba"))
    training, validation = config.training.datasets[0], config.validation.datasets[0]
    for dataset in (training, validation, config.inference.dataset):
        assert "padding_eps" in dataset.transforms
        assert "sensitivity_maps_gaussian" in dataset.transforms.sensitivity_map_estimation
        assert {"crop", "image_center_crop"} <= dataset.transforms.cropping.keys()
    assert all("crop" in section for section in (config.training.loss, config.validation, config.inference))
    assert len(config.training.datasets) == len(training.transforms.masking.accelerations) == 1
    assert training.transforms.use_seed is False
    assert validation == config.inference.dataset
    assert validation.transforms.masking is None


@pytest.mark.parametrize("case", CASES)
def test_configuration_fits_the_prepared_data(case, prepared):
    config = compose(_parts(case, "hifimamba"))
    folder = f"{CASES[case].evaluation}_{CASES[case].mask}"
    expected = read_protocol(prepared(case))["configurations"][folder]
    assert expected["dataset"].items() <= config.inference.dataset.items()
    assert config.physics == expected["physics"]
    with h5py.File(next((prepared(case) / "train").iterdir())) as file:
        has_coils = len(kspace_shape(file)) == 4
    estimation = config.training.datasets[0].transforms.sensitivity_map_estimation
    assert estimation.sensitivity_maps_type == ("rss_estimate" if has_coils else "unit")


@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_those_that_are_stored(mask):
    offered = {
        folder.removeprefix("val_"): options
        for case in CASES.values()
        for folder, options in Settings.of(case.data_set).mask_folders("val").items()
    }
    assert offered.keys() == set(MASKS)
    config = compose(_parts("m4raw", "hifimamba", mask))
    masking = config.training.datasets[0].transforms.masking
    assert config.inference.dataset.text_description == mask
    assert (masking.name, masking.accelerations) == (offered[mask].name, [offered[mask].acceleration])
    assert masking.center_fractions == (offered[mask].center_fraction and [offered[mask].center_fraction])


@pytest.mark.parametrize("model", MODELS)
def test_direct_builds_every_model_at_full_size(model, in_process, tmp_path):
    paths = _parts("m4raw", model)
    (tmp_path / "config.yaml").write_text(to_yaml(compose(paths), paths, []))
    environment = setup_training_environment("run", tmp_path, tmp_path / "config.yaml", "cpu", 0, False)
    assert type(environment.engine.model).__name__ == environment.cfg.model.model_name.split(".")[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimation of sensitivity map of Single-coil data")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(("case", "model"), COMBINATIONS)
def test_direct_trains_validates_and_predicts(case, model, prepared, in_process, tmp_path):
    data, mask = prepared(case), CASES[case].mask
    paths, overrides = _tiny(case, model)
    config_path = tmp_path / "config.yaml"
    config_path.write_text(to_yaml(compose(paths, overrides), paths, overrides))
    validation, evaluation = (data / f"{split}_{mask}" for split in (CASES[case].validation, CASES[case].evaluation))
    setup_train(
        "run",
        data / "train",
        validation,
        tmp_path,
        config_path,
        *[False, *[None] * 4],
        "cpu",
        0,
        False,
        0,
        False,
        False,
    )
    names = sorted(path.name for path in evaluation.iterdir())
    (metrics_path,) = (tmp_path / "run").glob(f"metrics_val_{mask}_*.json")
    _check_metrics(metrics_path, sorted(path.name for path in validation.iterdir()))

    setup_inference_save_to_h5(
        "",
        evaluation,
        tmp_path / "log",
        tmp_path / "predicted",
        None,
        tmp_path / "run" / "model_5.pt",
        "cpu",
        0,
        0,
        config_path,
    )
    _check_metrics(next(tmp_path.rglob("metrics_inference.json")), names)
    assert {path.name for path in (tmp_path / "predicted").iterdir()} >= set(names)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_files_with_and_without_references_train_together(in_process, monkeypatch, tmp_path):
    lookalikes.m4raw(tmp_path / "download", num_slices=2)
    options = {"masks": (MaskOptions("FastMRIEquispaced", 4, 0.08),), "mask_training": True}
    prepare(tmp_path / "download", tmp_path / "data", Settings.of("m4raw", **options))
    names = ("common", "m4raw/configs/base", "self_supervised", "joint", "masks/equispaced_4x")
    paths = [*(PROJECT / f"{name}.yaml" for name in names), ROOT / "configs" / "tiny.yaml"]
    overrides = [*SHORT, "training.batch_size=1", "model.data_consistency=proximal"]
    (tmp_path / "config.yaml").write_text(to_yaml(compose(paths, overrides), paths, overrides))
    files = sorted(path.name for path in (tmp_path / "data" / "train_equispaced_4x").iterdir())
    for name, file in zip(("references.lst", "undersampled.lst"), files, strict=True):
        (tmp_path / name).write_text(f"{file}\n")
    batches, iterate = set(), HiFiMambaV2JSSLEngine._do_iteration

    def watch(engine, data, *arguments, **options):
        output = iterate(engine, data, *arguments, **options)
        if engine.model.training:
            assert output.data_dict.keys() == {"kspace_nmse_loss", "kspace_nmae_loss", "load_balancing_loss"}
            batches.add((bool(data["is_ssl"][0]), Path(data["filename"][0]).name))
        return output

    monkeypatch.setattr(HiFiMambaV2JSSLEngine, "_do_iteration", watch)
    words = ["train", str(tmp_path / "out"), "--cfg", str(tmp_path / "config.yaml"), "--device", "cpu"]
    for split in ("train", "val"):
        words += [
            f"--{'training' if split == 'train' else 'validation'}-root",
            f"{tmp_path}/data/{split}_equispaced_4x",
        ]
    cli.main([*words, "--num-workers", "0"])
    assert batches == {(False, files[0]), (True, files[1])}


def test_every_model_trains_with_the_same_sensitivity_model_and_losses():
    shared = [
        {"additional_models": config.additional_models, "loss": config.training.loss}
        for config in (compose(_parts("m4raw", model)) for model in MODELS)
    ]
    assert all(entry == shared[0] for entry in shared)
    assert [loss.function for loss in shared[0]["loss"].losses] == ["l1_loss", "ssim_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if " " not in case])
def test_every_data_set_can_be_benchmarked(case, prepared, tmp_path):
    """End to end, from the prepared look-alike to the report, with the files of the project."""
    *shared, mask, model = map(str, _parts(case, "unet"))
    specification = {
        "name": case,
        "description": "A look-alike.",
        "data": str(prepared(case)),
        "splits": {"validation": CASES[case].validation, "test": CASES[case].evaluation},
        "configs": shared,
        "accelerations": {CASES[case].mask: [mask]},
        "models": {"U-Net": {"configs": [model], "overrides": [f"model.{value}" for value in TINY["unet"]]}},
        "baseline": "U-Net",
        "budget": {"iterations": 6},
    }
    OmegaConf.save(specification, tmp_path / "specification.yaml")
    cli.main(["benchmark", str(tmp_path / "specification.yaml"), "--output", str(tmp_path / "out")])
    folder = BenchmarkFolder(tmp_path / "out")
    results = Results.load(folder.results_json)
    assert results.failures == []
    assert {row.model for row in results.summary} == {"U-Net", "zero-filled"}
    assert all(math.isfinite(row.mean) for row in results.summary)
    assert folder.report.exists() and folder.cell("U-Net", 0).checkpoint(5).exists()


def _check_metrics(path: Path, names: list[str]) -> None:
    metrics = json.loads(path.read_text())
    assert sorted(metrics) == names
    for values in metrics.values():
        assert {f"fastmri_{name}_metric" for name in ("ssim", "psnr", "nmse")} <= values.keys()
        assert all(map(math.isfinite, values.values()))
