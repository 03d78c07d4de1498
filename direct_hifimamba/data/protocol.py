"""The protocol of a prepared data set: its settings, and `protocol.json`, which records what was done."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from direct_hifimamba.data.data_sets import DATA_SETS, MEASURED, SIMULATED, select_slices
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.seeding import seed_from_name
from direct_hifimamba.data.sources import RawFile
from direct_hifimamba.files import write_text

FILE_NAME = "protocol.json"
TRAINING = "train"
CROP, RESAMPLE = "crop", "resample"
SINGLE_COIL, MULTI_COIL = "single", "multi"
RECONSTRUCTIONS = ("esc", "rss")
_LATER_KEYS = ("divide", "reconstruction", "axes", "variable")


@dataclass(frozen=True)
class Settings:
    """Settings for the preparation of a data set; :meth:`of` fills in the defaults of the data set.

    Attributes
    ----------
    data_set : str
        Name of the data set, a key of `DATA_SETS`.
    kspace : str
        `measured` or `simulated from magnitude`.
    coils : str, optional
        `single` or `multi`, where the data set has both.
    acquisition : str or tuple of str, optional
        Kind of measurement to use, or kinds, where the data set has several.
    slices : str
        Rule for :func:`data_sets.select_slices`.
    size : tuple of ints, optional
        Height and width of magnitude images. None: measured k-space stays as it is.
    fit : str, optional
        How images are brought to this size: `crop` (and zero-pad) about the centre, or `resample`.
    reconstruction : str, optional
        `esc` or `rss`: which of fastMRI's reconstructions is the magnitude image. None: the first one that there is.
    normalise_slices : bool
        Scale every magnitude image to [0, 1] with its own minimum and maximum, and divide measured k-space by the
        maximum of its slice's image.
    masks : tuple of MaskOptions
        Masks that are stored for evaluation.
    mask_training : bool
        Store masks for the training split, too.
    copy : bool
        Copy measured k-space instead of linking it.
    seed : int
        Seed for the masks and for the division of subjects.
    divide : tuple of str, str and float, optional
        Name of a split, name of a new split, and the fraction of the subjects of the first that are moved to the
        second.
    axes : tuple of str, optional
        Names out of `raw_data.AXES` of the axes of arrays in raw files, where the format does not say them.
    variable : str, optional
        Name of k-space in raw files.
    """

    data_set: str
    kspace: str
    coils: str | None
    acquisition: str | tuple[str, ...] | None
    slices: str
    size: tuple[int, int] | None
    fit: str | None
    masks: tuple[MaskOptions, ...]
    reconstruction: str | None = None
    normalise_slices: bool = False
    mask_training: bool = False
    copy: bool = False
    seed: int = 0
    divide: tuple[str, str, float] | None = None
    axes: tuple[str, ...] | None = None
    variable: str | None = None

    @classmethod
    def of(cls, name: str, **options: Any) -> Self:
        """Return the settings of the data set `name`, with the `options` that are neither None nor False.

        Raises
        ------
        ValueError
            If an option does not apply to the data set, or a value is invalid.
        """
        data_set = DATA_SETS[name]
        given = {key: value for key, value in options.items() if value is not None and value is not False}
        kspace = given.get("kspace", MEASURED if data_set.is_measured else SIMULATED)
        if kspace == MEASURED and not data_set.is_measured:
            raise ValueError(f"{name} consists of magnitude images; its k-space cannot be {MEASURED}.")
        simulated = kspace == SIMULATED
        if "acquisition" in given:
            names = (given["acquisition"],) if isinstance(given["acquisition"], str) else tuple(given["acquisition"])
            # A single one is stored as a string, as in files of earlier versions.
            given["acquisition"] = names[0] if len(names) == 1 else tuple(sorted(set(names)))
        meaningful = {
            "coils": data_set.has_coil_variants,
            "acquisition": data_set.acquisition is not None,
            "size": simulated,
            "fit": simulated,
            "reconstruction": simulated and data_set.has_coil_variants,
            "copy": not simulated,
            "axes": data_set.reader is RawFile,
            "variable": data_set.reader is RawFile,
        }
        for key in given:
            if not meaningful.get(key, True):
                raise ValueError(f"--{key.replace('_', '-')} does not apply to {name} with {kspace} k-space; omit it.")
        settings = cls(
            **{
                "data_set": name,
                "kspace": kspace,
                "coils": SINGLE_COIL if data_set.has_coil_variants else None,
                "acquisition": data_set.acquisition,
                "slices": data_set.slices,
                "size": data_set.size if simulated else None,
                "fit": CROP if simulated else None,
                "masks": data_set.masks,
                **given,
            }
        )
        select_slices(settings.slices, 0)
        seed_from_name("", settings.seed)
        if settings.divide is not None:
            _check_division(name, settings.divide)
        if min(settings.size or (1,)) < 1:
            raise ValueError(f"The size is {settings.size}; expected at least 1.")
        for folder, count in Counter(_mask_folder(TRAINING, mask) for mask in settings.masks).items():
            if count > 1:
                raise ValueError(f"{count} masks would go to the same folder {folder}; prepare them separately.")
        return settings

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the settings that :meth:`to_json` of this or an earlier version has returned as `values`."""
        masks = tuple(MaskOptions(**mask) for mask in values["masks"])
        stored: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**{**stored, "masks": masks})

    def to_json(self) -> dict[str, Any]:
        """Return the settings in the types of JSON; later keys only if they are set, as in earlier versions."""
        values = json.loads(json.dumps(asdict(self)))
        return {key: value for key, value in values.items() if key not in _LATER_KEYS or value is not None}

    @property
    def acquisitions(self) -> tuple[str | None, ...]:
        """Kinds of measurement to use; None where the data set has only one."""
        return self.acquisition if isinstance(self.acquisition, tuple) else (self.acquisition,)

    @property
    def has_coils(self) -> bool:
        """Whether k-space has several coils."""
        return self.kspace == MEASURED and self.coils != SINGLE_COIL

    @property
    def folders(self) -> dict[str, str]:
        """Folder of the download with the files of each split."""
        splits = DATA_SETS[self.data_set].splits
        if self.divide is not None:
            splits = {**splits, self.divide[1]: splits[self.divide[0]]}
        return {split: folder.format(coils=self.coils) for split, folder in splits.items()}

    def splits_sharing_folder(self, split: str) -> list[str]:
        """Return the splits whose files are in the same folder of the download as those of `split`, itself included."""
        folders = self.folders
        return [other for other, folder in folders.items() if folder == folders[split]]

    def mask_folders(self, split: str) -> dict[str, MaskOptions]:
        """Return the folders with the evaluation masks of a split, and the mask of each folder."""
        if split == TRAINING and not self.mask_training:
            return {}
        return {_mask_folder(split, mask): mask for mask in self.masks}

    def remarks(self) -> list[str]:
        """Return what readers of results on these data have to know."""
        paper = Settings.of(self.data_set, kspace=DATA_SETS[self.data_set].kspace_of_paper)
        is_of_paper = self.data_set != "raw"
        paper = replace(paper, normalise_slices=is_of_paper, reconstruction="rss" if paper.coils else None)
        here, there = (json.loads(json.dumps(asdict(settings))) for settings in (self, paper))
        compared = ["kspace", "coils", "acquisition", "slices", "masks"]
        if self.kspace == paper.kspace:  # otherwise these are not comparable
            compared += ["size", "fit", "reconstruction", "normalise_slices"]
        remarks = {
            "K-space is the Fourier transform of magnitude images: Hermitian, without the phase and the noise of a "
            "measurement. Results say nothing about measured k-space.": self.kspace == SIMULATED,
            "Each slice was scaled to [0, 1] by its reference: the input knows the scale of the target.": (
                self.normalise_slices
            ),
            "Subjects were divided between splits at random, with a fixed seed.": self.divide is not None,
            "A stored mask is the same for all slices of a file.": bool(self.masks),
            "FastMRIRandom reaches its acceleration on average only; the protocol has the value of each file.": any(
                mask.name == "FastMRIRandom" for mask in self.masks
            ),
            **{
                f"Unlike in the paper, {key} is {json.dumps(here[key])}, not {json.dumps(there[key])}.": True
                for key in compared
                if here[key] != there[key]
            },
        }
        return [remark for remark, applies in remarks.items() if applies]


def _check_division(name: str, divide: tuple[str, str, float]) -> None:
    splits = DATA_SETS[name].splits
    divided, new, fraction = divide
    if divided not in splits or new in splits or not re.fullmatch(r"[a-z]+", new) or not 0 < fraction < 1:
        raise ValueError(
            f"The division is {divided} {new} {fraction:g}; expected one of the splits {', '.join(splits)} of {name}, "
            "the name of a new one in small letters, and a fraction between 0 and 1, as in: "
            f"{list(splits)[-1]} {'test' if 'test' not in splits else 'val'} 0.5."
        )


def _mask_folder(split: str, mask: MaskOptions) -> str:
    return f"{split}_{mask.name.removeprefix('FastMRI').lower()}_{mask.acceleration:g}x"


def configuration_of(settings: Settings, line_masks: bool | None = None) -> dict[str, Any]:
    """Return the keys that a configuration of DIRECT needs to read a folder.

    Parameters
    ----------
    settings : Settings
    line_masks : bool, optional
        Whether the masks in the folder sample whole columns. None: the folder has no masks.
    """
    centered = settings.kspace == SIMULATED or DATA_SETS[settings.data_set].centered
    suffix = "" if centered else "(centered=False)"
    dataset: dict[str, Any] = {"name": "FastMRI", "pass_mask": bool(line_masks)}
    if line_masks is False and settings.has_coils:
        dataset = {"name": "FastMRIWithMasks"}
    elif line_masks is False:
        dataset = {"name": "CMRxRecon", "kspace_key": "kspace", "extra_keys": ["mask"]}
    return {
        "dataset": dataset,
        "physics": {"forward_operator": f"fft2{suffix}", "backward_operator": f"ifft2{suffix}"},
    }


def list_name(split: str) -> str:
    """Return the name of the list of files of a split."""
    return f"{split}.lst"


def list_of(names: Iterable[str]) -> str:
    """Return the content of a list of files: a name on each line."""
    return "".join(f"{name}\n" for name in names)


def read_protocol(folder: Path) -> dict[str, Any] | None:
    """Return the protocol of a prepared data set; None if there is none.

    Raises
    ------
    ValueError
        If the file is no JSON document.
    """
    path = folder / FILE_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Remove {folder} and prepare the data set again.") from error


def write_protocol(folder: Path, protocol: dict[str, Any]) -> None:
    """Write the protocol of a prepared data set."""
    text = json.dumps(protocol, indent=1, sort_keys=True)
    text = re.sub(r"\[\n[\d\s,]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    write_text(folder / FILE_NAME, f"{text}\n")
