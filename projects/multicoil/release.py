"""Write the weights of trainings into the package, in the form in which it ships them.

Run `python projects/multicoil/release.py NAME RUN/model_7499.pt [RUN/model_7499.pt ...]` with one checkpoint per seed
of one configuration, which is taken from `config.yaml` beside the first. Only the weights are kept, and the calibration
of earlier ones is removed. The model card `direct_hifimamba/reconstruction/weights/NAME/card.yaml` is written by hand.
Afterwards, write its page, `direct-hifimamba weights NAME > docs/weights/NAME.md`, and calibrate the spread of its
images: `direct-hifimamba calibrate NAME HEADS direct_hifimamba/reconstruction/weights/NAME/calibration.json` with
`--accelerations 2 4 6 8 10`, or with `--accelerations 2 4 6 8 --coils 1 1` for a single coil.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from direct.environment import load_dataset_config
from omegaconf import DictConfig, OmegaConf

from direct_hifimamba.files import hash_file, replace_when_complete, write_text
from direct_hifimamba.reconstruction.pretrained import CALIBRATION_NAME, CHECKSUMS_NAME, CONFIG_NAME, FOLDER
from direct_hifimamba.reconstruction.volume import load

KEPT = ("physics", "model", "additional_models", "training", "inference")
"""Sections of the configuration that are released; the section `validation` says nothing about the network."""


def release(checkpoints: list[Path], folder: Path, config_path: Path | None = None) -> None:
    """Write configuration, weights and checksums.

    Parameters
    ----------
    checkpoints : list of Path
        Checkpoints of `direct train`, or the weights of an earlier release.
    folder : Path
        Where they are written, replacing those of an earlier release.
    config_path : Path, optional
        Configuration. Default: the one beside the first checkpoint.

    Raises
    ------
    ValueError
        If a checkpoint does not fit the configuration, if two are the same, or if they trained with other slices.
    """
    config_path = config_path or checkpoints[0].parent / CONFIG_NAME
    load(checkpoints, config_path, "cpu")
    trained_with = [_training_data(path.parent / CONFIG_NAME) for path in checkpoints]
    for path, data in zip(checkpoints, trained_with, strict=True):
        if data != trained_with[0]:
            raise ValueError(
                f"{path} and {checkpoints[0]} differ in training.datasets of their {CONFIG_NAME}; expected no other "
                "difference than the seed, as the model card describes one kind of data."
            )
    config = cast(DictConfig, OmegaConf.load(config_path))
    networks = [_weights(path) for path in checkpoints]  # before anything is replaced: they may be in `folder`
    folder.mkdir(parents=True, exist_ok=True)
    names = [CONFIG_NAME]
    with replace_when_complete(folder / CONFIG_NAME) as partial:
        OmegaConf.save(OmegaConf.create({key: config[key] for key in KEPT if key in config}), partial)
    for number, weights in enumerate(networks, 1):
        names.append(f"seed_{number}.pt")
        with replace_when_complete(folder / names[-1]) as partial:
            torch.save(weights, partial)
    write_text(folder / CHECKSUMS_NAME, "".join(f"{hash_file(folder / name)}  {name}\n" for name in names))
    for old in (*folder.glob("*.pt"), folder / CALIBRATION_NAME):
        if old.name not in names:
            old.unlink(missing_ok=True)


def _training_data(config_path: Path) -> list[dict[str, Any]]:
    """Return the data sets of a training, with all keys but their seeds."""
    datasets = cast(DictConfig, OmegaConf.load(config_path)).training.datasets
    completed = [OmegaConf.to_container(OmegaConf.merge(load_dataset_config(one.name), one)) for one in datasets]
    return [{key: value for key, value in cast(dict[str, Any], one).items() if key != "seed"} for one in completed]


def _weights(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights in a checkpoint alone."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return {
        name: {key: value.clone() for key, value in stored[name].items()}
        for name in stored
        if name.endswith("model")  # as DIRECT finds them
    }


def main() -> None:
    """Write a release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the weights, such as multicoil")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--cfg", type=Path, help="configuration (default: config.yaml beside the first checkpoint)")
    args = parser.parse_args()
    release(args.checkpoints, FOLDER / args.name, args.cfg)
    size = sum(path.stat().st_size for path in FOLDER.rglob("*.pt"))
    print(f"Wrote {FOLDER / args.name}. All weights in the package have {size / 1e6:.1f} MB.")


if __name__ == "__main__":
    main()
