"""Write the weights of trainings into the package, in the form in which it ships them.

Run `python projects/multicoil/release.py NAME RUN/model_7499.pt [RUN/model_7499.pt ...]` with one checkpoint per seed
of one configuration, which is taken from `config.yaml` beside the first. Only the weights are kept. The model card
`direct_hifimamba/reconstruction/weights/NAME/card.yaml` is written by hand. Afterwards, write its page,
`direct-hifimamba weights NAME > docs/weights/NAME.md`, and calibrate the spread of its images:
`direct-hifimamba calibrate NAME HEADS direct_hifimamba/reconstruction/weights/NAME/calibration.json` (`--coils 1 1` for
a single coil).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from direct_hifimamba.files import hash_file, replace_when_complete, write_text
from direct_hifimamba.reconstruct import Reconstructor
from direct_hifimamba.reconstruction.pretrained import CHECKSUMS_NAME, CONFIG_NAME, FOLDER

KEPT = ("physics", "model", "additional_models", "training", "inference")
"""Sections of the configuration that are released; the section `validation` says nothing about the network."""


def release(checkpoints: list[Path], folder: Path, config_path: Path | None = None) -> None:
    """Write configuration, weights and checksums.

    Parameters
    ----------
    checkpoints : list of Path
        Checkpoints of `direct train`.
    folder : Path
        Where they are written, replacing those of an earlier release.
    config_path : Path, optional
        Configuration. Default: the one beside the first checkpoint.

    Raises
    ------
    ValueError
        If a checkpoint does not fit the configuration.
    """
    config_path = config_path or checkpoints[0].parent / CONFIG_NAME
    for checkpoint in checkpoints:
        Reconstructor.from_checkpoint(checkpoint, config_path, "cpu")  # raises where it does not fit
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.pt"):
        old.unlink()
    config = cast(DictConfig, OmegaConf.load(config_path))
    names = [CONFIG_NAME]
    with replace_when_complete(folder / CONFIG_NAME) as partial:
        OmegaConf.save(OmegaConf.create({key: config[key] for key in KEPT if key in config}), partial)
    for number, checkpoint in enumerate(checkpoints, 1):
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights = {
            name: {key: value.clone() for key, value in stored[name].items()}
            for name in stored
            if name.endswith("model")  # as DIRECT finds them
        }
        names.append(f"seed_{number}.pt")
        with replace_when_complete(folder / names[-1]) as partial:
            torch.save(weights, partial)
    write_text(folder / CHECKSUMS_NAME, "".join(f"{hash_file(folder / name)}  {name}\n" for name in names))


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
