"""What all models of a benchmark are trained and tested on, as hashes."""

import copy
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import find_difference
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.provenance import describe_code
from direct_hifimamba.data.formats.hdf5 import (
    CMRXRECON_SUFFIX,
    hash_content,
    kspace_shape,
    read_mask,
    read_slices,
)
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.data.protocol import FILE_NAME as PROTOCOL
from direct_hifimamba.data.provenance import read_origin
from direct_hifimamba.data.sources import SourceError, check_fully_sampled
from direct_hifimamba.files import replace_when_complete

_FREE_KEYS = ("name", "description", "baseline", "data", "configs", "metrics", "classical", "validations")
"""Keys on which no trained model depends; of data and configurations, the content is compared instead."""


def list_files(folder: Path) -> list[Path]:
    """Return the volumes in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".h5", CMRXRECON_SUFFIX))


class KSpace(NamedTuple):
    """What is remembered about the k-space of a file: number of slices, and hashes of those that are not empty."""

    sha256: str
    size: int
    slices: list[str]


class KSpaceMemory:
    """Remembers hashes of k-space by the names, sizes and modification times of the files that hold it.

    Parameters
    ----------
    path : Path
        JSON file that keeps the hashes.
    data : Path
        Folder to which names are relative.
    read_only : bool
        Leave the JSON file as it is, for one of several tasks at the same time.
    """

    def __init__(self, path: Path, data: Path, read_only: bool = False) -> None:
        self._path, self._data, self._read_only = path, data, read_only
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._known = {key: KSpace(*value) for key, value in stored.items()}

    def key(self, path: Path, file: h5py.File) -> str:
        """Return names, sizes and times of the files that hold the k-space of a file: itself, or those it links to."""
        link = file.get("kspace", getlink=True)
        holder = path.parent / link.filename if isinstance(link, h5py.ExternalLink) else path
        sources = [holder]
        if file["kspace"].is_virtual:
            names = {source.file_name.replace("%%", "%") for source in file["kspace"].virtual_sources()}
            sources += sorted(holder.parent / name for name in names)
        stats = [(os.path.relpath(source, self._data), source.stat()) for source in sources]
        return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)

    def hash(self, paths: Mapping[str, Path], jobs: int, verify: bool = False) -> dict[str, KSpace]:
        """Return what is known about the k-space of files by their keys; what is not is read in several processes.

        Parameters
        ----------
        paths : mapping
            A file by each key.
        jobs : int
        verify : bool
            Read all k-space, whatever is remembered.
        """
        unknown = [key for key in paths if verify or key not in self._known]
        if unknown:
            # Reading a few files takes less time than starting processes, which import PyTorch.
            found = map_files(
                _hash_kspace, [paths[key] for key in unknown], jobs if len(unknown) > 16 else 1, "hash data"
            )
            try:
                self._known.update(zip(unknown, found, strict=True))
            finally:  # also what was read before an interruption
                if not self._read_only:
                    with replace_when_complete(self._path) as partial:
                        partial.write_text(json.dumps(self._known), encoding="utf-8")
        return {key: self._known[key] for key in paths}

    @property
    def slices(self) -> dict[str, list[str]]:
        """Hashes of the slices that are not empty, by the hash of all k-space of a file."""
        return {kspace.sha256: kspace.slices for kspace in self._known.values()}


def _hash_kspace(path: Path) -> KSpace:
    """Read all k-space of a file; each slice has to be a reference."""
    slices = []
    try:
        with h5py.File(path) as file:
            for kspace in read_slices(file):
                if kspace.any():
                    check_fully_sampled(kspace)
                    slices.append(hashlib.sha256(np.ascontiguousarray(kspace)).hexdigest()[:16])
            return KSpace(hash_content(file), kspace_shape(file)[0], slices)
    except SourceError as error:
        raise ValueError(f"{path} is no reference: {error}.") from error
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data again.") from error


def describe_folders(
    folders: Sequence[Path], memory: KSpaceMemory, jobs: int = 1, verify: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """Describe the files of folders.

    Returns
    -------
    dict
        By folder and file: hash of the k-space `sha256`, number of `slices`, and hash of the `mask`, None without one.

    Raises
    ------
    OSError
        If a folder is missing.
    ValueError
        If a folder is empty, or a file damaged or undersampled.
    """
    keys: dict[Path, str] = {}
    masks: dict[Path, str | None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The folder {folder} is missing on {platform.node()}; expected {folder.name} in the prepared folder, "
                "see data, splits and accelerations of the specification."
            )
        paths = list_files(folder)
        if not paths:
            raise ValueError(f"The folder {folder} holds no .h5 file; prepare the data again.")
        for path in paths:
            try:
                with h5py.File(path) as file:
                    mask = read_mask(file)
                    keys[path] = memory.key(path, file)
            except (OSError, KeyError) as error:
                raise ValueError(f"{path} is damaged ({error}); prepare the data again.") from error
            hashed = None if mask is None else repr(mask.shape).encode() + mask.tobytes()
            masks[path] = None if hashed is None else hashlib.sha256(hashed).hexdigest()
    known = memory.hash({key: path for path, key in keys.items()}, jobs, verify)
    described: dict[str, dict[str, dict[str, Any]]] = {folder.name: {} for folder in folders}
    for path, key in keys.items():
        kspace = {"sha256": known[key].sha256, "slices": known[key].size, "mask": masks[path]}
        described[path.parent.name][path.name] = kspace
    return described


def describe_data(
    specification: Specification, memory: KSpaceMemory, jobs: int = 1, verify: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """Describe the data of a benchmark as :func:`describe_folders` does.

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
    data = describe_folders(list(folders.values()), memory, jobs, verify)
    for name, files in data.items():
        lacking = [file for file, described in files.items() if described["mask"] is None]
        if lacking and name != splits.training:
            raise ValueError(
                f"{name}/{lacking[0]} has no sampling mask; masks of the validation and the test split have to be "
                "stored, as direct-hifimamba prepare and simulate --mask do."
            )
    for split in (splits.validation, splits.test):
        _check_volumes({name: data[name] for name in (f"{split}_{suffix}" for suffix in specification.accelerations)})
    first = next(iter(specification.accelerations))
    evaluated = (specification.folder(split, first) for split in (splits.validation, splits.test))
    compared = list(dict.fromkeys([folders[splits.training], *evaluated]))
    _check_disjoint({folder: data[folder.name] for folder in compared}, memory.slices)
    return data


def check_unchanged(folder: BenchmarkFolder, data: Path, names: Sequence[str]) -> None:
    """Make sure that the data of a run are those of the plan; files of the same size and time are not read.

    Parameters
    ----------
    folder : BenchmarkFolder
    data : Path
        Prepared folder.
    names : sequence of str
        Names of the folders in it.

    Raises
    ------
    OSError
        If a folder is missing on this machine.
    ValueError
        If a file has changed since the plan was made; the first one is named.
    """
    memory = KSpaceMemory(folder.hashes, data, read_only=True)
    found = describe_folders([data / name for name in names], memory)
    planned = read_plan(folder)["data"]
    difference = find_difference({name: planned[name] for name in names}, found)
    if difference is not None:
        raise ValueError(
            f"{data} has changed since {folder.plan} was written: {difference[0]} was {_short(difference[1])} and is "
            f"{_short(difference[2])}. Restore the file, or choose another --output."
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
                f"{difference[0]} does not have the same k-space in {first} and {folder}, or is in one of them only; "
                "accelerations are compared on the same volumes. Prepare the data again."
            )


def _check_disjoint(folders: Mapping[Path, Mapping[str, Any]], slices: Mapping[str, Sequence[str]]) -> None:
    """Make sure that no subject, no file of the download and no slice is in two folders.

    Parameters
    ----------
    folders : mapping
        The described files of each folder.
    slices : mapping
        Hashes of slices by that of their k-space.
    """
    owners: dict[tuple[str, str], str] = {}
    for folder, files in folders.items():
        found: dict[tuple[str, str], str] = {}
        for file, described in files.items():
            origin = read_origin(folder / file)
            identities = {("k-space of a slice", digest) for digest in slices[described["sha256"]]}
            identities.add(("subject", str(origin.get("subject", ""))))
            identities.add(("source (SHA-256)", str(origin.get("source", {}).get("sha256", ""))))
            found |= {identity: f"{folder.name}/{file}" for identity in identities if identity[1]}
        for identity in sorted(owners.keys() & found.keys()):
            raise ValueError(
                f"{found[identity]} and {owners[identity]} have the same {', '.join(identity)}; training, validation "
                "and test have to be different subjects. Remove one of them, and prepare the data again."
            )
        owners |= found


def _describe_group(origin: Mapping[str, Any], name: str) -> str:
    """What other files of a split are not independent of: the subject or the image of which a file holds slices."""
    return str(origin.get("subject") or origin.get("source", {}).get("name") or name)


def describe_inputs(
    specification: Specification,
    composed: Mapping[str, Mapping[str, DictConfig]],
    data: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Return everything that all models share, the configurations of all, and the code that runs them, as JSON has it.

    Parameters
    ----------
    specification : Specification
    composed : dict
        See :func:`direct_hifimamba.benchmark.plan.configurations.compose_models`.
    data : dict
        See :func:`describe_data`.
    """
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
        "models": {
            label: {acceleration: OmegaConf.to_container(config) for acceleration, config in configs.items()}
            for label, configs in composed.items()
        },
    }


def read_plan(folder: BenchmarkFolder) -> dict[str, Any]:
    """Return what :func:`record` has written to `plan.json`.

    Raises
    ------
    FileNotFoundError
        If there is no plan.
    """
    if not folder.plan.exists():
        raise FileNotFoundError(f"{folder.plan} is missing; make it with --stage plan.")
    plan: dict[str, Any] = json.loads(folder.plan.read_text(encoding="utf-8"))
    return plan


def record(
    folder: BenchmarkFolder, specification: Specification, inputs: Mapping[str, Any], runs: Sequence[Any]
) -> None:
    """Write specification and plan, after :func:`check_same`.

    Parameters
    ----------
    folder : BenchmarkFolder
    specification : Specification
    inputs : dict
        See :func:`describe_inputs`.
    runs : sequence of PlannedRun

    Raises
    ------
    ValueError
        As :func:`check_same`, or if the folder holds something else.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.plan.exists() and folder.specification.exists():
        check_same(folder, specification, json.loads(json.dumps(inputs)))
    elif any(not path.name.startswith(".") and path != folder.hashes for path in folder.path.iterdir()):
        raise ValueError(f"{folder.path} holds something else; choose an empty or new folder as --output.")
    content = json.dumps({"runs": [asdict(run) for run in runs], **inputs}, indent=1)
    for path, text in ((folder.plan, content), (folder.specification, specification.to_yaml(folder.path))):
        with replace_when_complete(path) as partial:
            partial.write_text(f"{text.rstrip()}\n", encoding="utf-8")


def check_same(folder: BenchmarkFolder, specification: Specification, inputs: Mapping[str, Any]) -> None:
    """Make sure that the benchmark in a folder was planned with the same specification and inputs.

    Models and seeds can be added, `_FREE_KEYS` changed, and data, configurations and results moved.

    Raises
    ------
    ValueError
        If anything else differs; the first difference is named.
    """
    before: dict[str, Any] = {"specification": yaml.safe_load(folder.specification.read_text(encoding="utf-8"))}
    now: dict[str, Any] = {"specification": yaml.safe_load(specification.to_yaml(folder.path))}
    before |= read_plan(folder)
    now |= copy.deepcopy(dict(inputs))
    added = [label for label in now["models"] if label not in before["models"]]
    if added and specification.has_minutes:
        raise ValueError(
            f"{folder.path} was begun without the model {added[0]}, which cannot be added: the iterations of a budget "
            "of minutes come from times that were measured side by side. Choose another --output."
        )
    has_network = any(_is_own(configs) for configs in before["models"].values())
    for described in (before, now):
        described.pop("runs", None)
        values = described["specification"]
        for key in _FREE_KEYS:
            values.pop(key, None)
        values["accelerations"] = list(values["accelerations"])
        values["seeds"] = values["seeds"][:1]  # the search's
        for model in values["models"].values():
            model.pop("configs")
        for label in added:
            values["models"].pop(label, None)
            described["models"].pop(label, None)
        if not has_network:
            described["code"].pop("network", None)
    difference = find_difference(before, now)
    if difference is not None:
        key, stored, current = difference
        remedy = "Finish with the version that it was begun with" if key.startswith("code.") else "Change it back"
        raise ValueError(
            f"{folder.path} was begun with other settings: {key} was {_short(stored)} and is {_short(current)}. "
            f"{remedy}, or choose another --output."
        )


def _is_own(configs: Mapping[str, Any]) -> bool:
    """Return whether the configurations of a model are those of a network of this package."""
    return all(config["model"]["model_name"].startswith("hifimamba.") for config in configs.values())


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


class DivergedError(ValueError):
    """A reconstruction is not finite."""


def check_predictions(predictions: Path, data: Path) -> None:
    """Make sure that the reconstructions of a folder are those of all files of `data`, finite, and with their masks.

    Some engines of DIRECT, such as that of RIM, do not say which mask they used; then nothing is checked of it. Masks
    that were checked are removed, as they take more room than the images.

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
            raise ValueError(f"{path} has no sampling mask; prepare the data again.")
        if not np.isfinite(images).all():
            bad = np.count_nonzero(~np.isfinite(images))
            raise DivergedError(
                f"The reconstruction of {path.name} is not finite: {bad} of {images.size} of its pixels."
            )
        if used is None:
            continue
        # DIRECT stores (slices, height or 1, width, 1).
        used = used.reshape(len(images), -1, mask.shape[-1])
        if not (used == mask.reshape(-1, mask.shape[-1])).all():
            raise ValueError(f"{path.name} was reconstructed from another mask than the stored one.")
        with replace_when_complete(predictions / path.name) as partial, h5py.File(partial, "w") as file:
            file["reconstruction"] = images
