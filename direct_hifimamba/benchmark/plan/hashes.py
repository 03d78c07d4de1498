"""Hashes of the k-space and the masks of prepared files; what has been read once is not read again."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from direct_hifimamba.data.formats.hdf5 import (
    CMRXRECON_SUFFIX,
    hash_content,
    kspace_shape,
    read_mask,
    read_slices,
)
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.data.references import SourceError, check_fully_sampled
from direct_hifimamba.files import write_text


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
                    write_text(self._path, json.dumps(self._known))
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
            content = None if mask is None else repr(mask.shape).encode() + mask.tobytes()
            masks[path] = None if content is None else hashlib.sha256(content).hexdigest()
    known = memory.hash({key: path for path, key in keys.items()}, jobs, verify)
    described: dict[str, dict[str, dict[str, Any]]] = {folder.name: {} for folder in folders}
    for path, key in keys.items():
        sha256, slices, _ = known[key]
        described[path.parent.name][path.name] = {"sha256": sha256, "slices": slices, "mask": masks[path]}
    return described
