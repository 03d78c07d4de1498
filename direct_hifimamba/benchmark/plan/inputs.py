"""What all models of a benchmark are trained and tested on, as hashes."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import find_difference, shared_sections
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.provenance import describe_code
from direct_hifimamba.data.formats.hdf5 import (
    CMRXRECON_SUFFIX,
    hash_content,
    kspace_shape,
    read_mask,
    read_origin,
    read_slices,
)
from direct_hifimamba.data.protocol import FILE_NAME as PROTOCOL
from direct_hifimamba.data.sources import SourceError, check_fully_sampled
from direct_hifimamba.files import replace_when_complete

_FREE_KEYS = ("name", "description", "baseline")
"""Of a specification: no run depends on them."""


def list_files(folder: Path) -> list[Path]:
    """The volumes in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".h5", CMRXRECON_SUFFIX))


def describe_file(path: Path) -> dict[str, Any]:
    """Hash of the k-space, number of slices, and hash of the sampling mask, None without one."""
    with h5py.File(path) as file:
        mask = read_mask(file)
        return {
            "sha256": hash_content(file),
            "slices": kspace_shape(file)[0],
            "mask": None if mask is None else hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest(),
        }


def describe_data(specification: Specification) -> dict[str, dict[str, dict[str, Any]]]:
    """By folder and file, what :func:`describe_file` says of the data of a benchmark.

    Raises
    ------
    OSError
        If a folder is missing.
    ValueError
        If learning rates would be searched for on the test split, if a folder is empty, if a file lacks its mask, is
        damaged or undersampled, if accelerations differ in their volumes, or if two splits share a subject, a file of
        the download, or a slice.
    """
    splits = specification.splits
    if specification.search is not None and splits.validation == splits.test:
        raise ValueError(
            f"The splits validation and test are both {splits.test!r}, and the search would choose learning rates on "
            "the test data. Name another validation split (prepare --divide makes one), or leave the search out."
        )
    folders = {splits.training: specification.data / splits.training}
    for split in (splits.validation, splits.test):
        for acceleration in specification.accelerations:
            folder = specification.folder(split, acceleration)
            if folder.name == splits.training:
                raise ValueError(f"The models would be trained on {folder.name}, a folder of the split {split}.")
            folders[folder.name] = folder
    for name, folder in folders.items():
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The folder {folder} is missing; expected {name} in the prepared folder, see splits and accelerations "
                "of the specification."
            )
        if not list_files(folder):
            raise ValueError(f"The folder {folder} holds no .h5 file; prepare the data anew.")
    paths = [path for folder in folders.values() for path in list_files(folder)]
    data: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in folders}
    for path in tqdm(paths, "verify data", unit="file"):
        try:
            data[path.parent.name][path.name] = describe_file(path)
        except (OSError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); prepare the data anew.") from error
    _check_masks(data, splits.training)
    for split in (splits.validation, splits.test):
        _check_volumes({name: data[name] for name in (f"{split}_{suffix}" for suffix in specification.accelerations)})
    first = next(iter(specification.accelerations))
    evaluated = (specification.folder(split, first) for split in (splits.validation, splits.test))
    compared = list(dict.fromkeys([folders[splits.training], *evaluated]))
    _check_origins(compared)
    _check_overlap(compared)
    return data


def _check_masks(data: Mapping[str, Mapping[str, Any]], training: str) -> None:
    for folder, files in data.items():
        for name, described in files.items():
            if folder != training and described["mask"] is None:
                raise ValueError(
                    f"{folder}/{name} has no sampling mask; masks of the validation and the test split have to be "
                    "stored, as direct-hifimamba prepare and simulate --mask do."
                )


def _check_volumes(folders: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that folders that differ in their masks do not differ in their k-space."""
    (first, reference), *others = (
        (folder, {name: described["sha256"] for name, described in files.items()}) for folder, files in folders.items()
    )
    for folder, files in others:
        difference = find_difference(reference, files)
        if difference is not None:
            raise ValueError(
                f"{difference[0]} has not the same k-space in {first} and {folder}, or is in one of them only; "
                "accelerations are compared on the same volumes. Prepare the data anew."
            )


def _check_origins(folders: Sequence[Path]) -> None:
    """Make sure that no subject and no file of the download is in two folders, whatever was made of it."""
    found: dict[Path, dict[tuple[str, str], Path]] = {
        folder: {identity: path for path in list_files(folder) for identity in _identities(path)} for folder in folders
    }
    for first, second in combinations(folders, 2):
        for kind, value in sorted(found[first].keys() & found[second].keys()):
            one, other = found[first][kind, value], found[second][kind, value]
            raise ValueError(
                f"{second.name}/{other.name} and {first.name}/{one.name} have the same {kind}, {value}; training, "
                "validation and test have to be different subjects. Remove one of them, and prepare the data again."
            )


def _identities(path: Path) -> Iterator[tuple[str, str]]:
    origin = read_origin(path)
    if "subject" in origin:
        yield "subject", str(origin["subject"])
    if "sha256" in origin.get("source", {}):
        yield "source (SHA-256)", str(origin["source"]["sha256"])


def _check_overlap(folders: Sequence[Path]) -> None:
    """Make sure that no slice is in two folders."""
    paths = [path for folder in folders for path in list_files(folder)]
    slices: dict[Path, dict[str, Path]] = {folder: {} for folder in folders}
    for path in tqdm(paths, "compare splits", unit="file"):
        slices[path.parent].update(dict.fromkeys(_hash_slices(path), path))
    for first, second in combinations(folders, 2):
        for digest in slices[first].keys() & slices[second].keys():
            one, other = slices[first][digest], slices[second][digest]
            raise ValueError(
                f"{second.name}/{other.name} has k-space of {first.name}/{one.name}; training, validation and test "
                "have to be different volumes. Remove one of them, and prepare the data anew."
            )


def _hash_slices(path: Path) -> Iterator[str]:
    """Hashes of the slices of a file that hold anything; each has to be a reference."""
    with h5py.File(path) as file:
        for kspace in read_slices(file):
            if kspace.any():
                try:
                    check_fully_sampled(kspace)
                except SourceError as error:
                    raise ValueError(f"{path} is no reference: {error}.") from error
                yield hashlib.sha256(np.ascontiguousarray(kspace)).hexdigest()


def _describe_group(origin: Mapping[str, Any], name: str) -> str:
    """What other files of a split are not independent of: the subject or the image of which a file holds slices."""
    return str(origin.get("subject") or origin.get("source", {}).get("name") or name)


def describe_inputs(specification: Specification, composed: Mapping[str, Mapping[str, DictConfig]]) -> dict[str, Any]:
    """Everything that all models share, the configurations of all, and the code that runs them, as JSON has it.

    Raises
    ------
    OSError, ValueError
        As :func:`describe_data`.
    """
    data = describe_data(specification)
    protocol = specification.data / PROTOCOL
    folders = [specification.folder(specification.splits.test, name) for name in specification.accelerations]
    origins = {str(read_origin(path).get("origin", "unknown")) for folder in folders for path in list_files(folder)}
    tested = {path.name: read_origin(path) for path in list_files(folders[0])}
    return {
        "data": data,
        "protocol": hashlib.sha256(protocol.read_bytes()).hexdigest() if protocol.exists() else None,
        "origin": ", ".join(sorted(origins)),
        "groups": {name: _describe_group(origin, name) for name, origin in tested.items()},
        "sources": {
            name: origin["source"]["sha256"] for name, origin in tested.items() if "sha256" in origin.get("source", {})
        },
        "code": describe_code(),
        "shared": shared_sections(next(iter(composed.values()))),
        "models": {
            label: {acceleration: OmegaConf.to_container(config) for acceleration, config in configs.items()}
            for label, configs in composed.items()
        },
    }


def record(folder: BenchmarkFolder, specification: Specification, inputs: Mapping[str, Any]) -> None:
    """Write specification and inputs, after making sure that what the folder holds already was made with the same.

    Models and seeds can be added, and texts and the baseline changed.

    Raises
    ------
    ValueError
        If anything else differs; the first difference is named.
    """
    text = specification.to_yaml(folder.path)
    if folder.inputs.exists() and folder.specification.exists():
        before = {
            "specification": OmegaConf.to_container(OmegaConf.load(folder.specification)),
            **json.loads(folder.inputs.read_text(encoding="utf-8")),
        }
        now = {"specification": OmegaConf.to_container(OmegaConf.create(text)), **json.loads(json.dumps(inputs))}
        _check_growth(folder, specification, before, now)
    elif folder.path.exists() and any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise ValueError(f"{folder.path} holds something else; choose an empty or new folder as --output.")
    folder.path.mkdir(parents=True, exist_ok=True)
    for path, content in ((folder.inputs, json.dumps(inputs, indent=1)), (folder.specification, text)):
        with replace_when_complete(path) as partial:
            partial.write_text(f"{content.rstrip()}\n", encoding="utf-8")


def _check_growth(
    folder: BenchmarkFolder, specification: Specification, before: dict[str, Any], now: dict[str, Any]
) -> None:
    """Make sure that a benchmark has grown at most; takes out of both descriptions what may differ."""
    added = [label for label in now["models"] if label not in before["models"]]
    if added and specification.has_minutes:
        raise ValueError(
            f"{folder.path} was begun without the model {added[0]}, which cannot be added: the iterations of a budget "
            "of minutes come from times that were measured side by side. Choose another --output."
        )
    for described in (before, now):
        values = described["specification"]
        for key in _FREE_KEYS:
            values.pop(key, None)
        values["seeds"] = values["seeds"][:1]  # the search's
        for models in (values["models"], described["models"]):
            for label in added:
                models.pop(label, None)
    if not any(_is_own(configs) for configs in before["models"].values()):
        before["code"].pop("network", None)
        now["code"].pop("network", None)
    difference = find_difference(before, now)
    if difference is not None:
        key, stored, current = difference
        remedy = "Finish with the version that it was begun with" if key.startswith("code.") else "Change it back"
        raise ValueError(
            f"{folder.path} was begun with others: {key} was {_short(stored)} and is {_short(current)}. {remedy}, or "
            "choose another --output."
        )


def _is_own(configs: Mapping[str, Any]) -> bool:
    """Whether the configurations of a model are those of a network of this package."""
    return all(config["model"]["model_name"].startswith("hifimamba.") for config in configs.values())


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


class DivergedError(ValueError):
    """A reconstruction is not finite."""


def check_predictions(predictions: Path, data: Path) -> None:
    """Make sure that the reconstructions of a folder are those of all files of `data`, finite, and with their masks.

    Some engines of DIRECT, such as that of RIM, do not say which mask they used; then nothing is checked of it.

    Raises
    ------
    DivergedError
        If a reconstruction is not finite.
    ValueError
        If the masks are others.
    """
    for path in list_files(data):
        with h5py.File(path) as measured, h5py.File(predictions / path.name) as predicted:
            images = predicted["reconstruction"][()]
            used = predicted["sampling_mask"][()] != 0 if "sampling_mask" in predicted else None
            mask = read_mask(measured)
        if mask is None:
            raise ValueError(f"{path} has no sampling mask; prepare the data anew.")
        if not np.isfinite(images).all():
            raise DivergedError(f"The reconstruction of {path.name} is not finite: {_count_bad(images)} of its pixels.")
        if used is None:
            continue
        # DIRECT stores (slices, height or 1, width, 1).
        used = used.reshape(len(images), -1, mask.shape[-1])
        if not (used == mask.reshape(-1, mask.shape[-1])).all():
            raise ValueError(f"{path.name} was reconstructed from another mask than the stored one.")


def _count_bad(images: np.ndarray) -> str:
    return f"{int((~np.isfinite(images)).sum())} of {images.size}"
