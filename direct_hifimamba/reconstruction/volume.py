"""Reconstruction of whole volumes in bounded memory.

Slices are read, reconstructed and stored one at a time, in one or several processes. Until the volume is complete,
finished slices are kept in a hidden folder beside the output, so that an interrupted run resumes.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import direct_hifimamba
from direct_hifimamba.data.acquisition import (
    describe_acquisition,
    find_mask,
    open_acquisition,
    open_sensitivity_map,
    summarise,
)
from direct_hifimamba.data.formats.raw_data import RawData
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.files import lock_folder, replace_when_complete
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME, find_pretrained, hash_file, is_pretrained
from direct_hifimamba.reconstruction.reconstructor import Reconstructor

_RUN, _MASK = "run.json", "mask.npy"


@dataclass(frozen=True)
class Request:
    """What to reconstruct, and how.

    Attributes
    ----------
    checkpoint : Path
        As in :meth:`Reconstructor.from_checkpoint`, and so are `config_path` and `device`; or a name as in
        :meth:`Reconstructor.from_pretrained`.
    source : Path
        File of raw data, see :func:`direct_hifimamba.data.acquisition.read_acquisition`, and so are `mask_path`,
        `axes` and `variable`.
    config_path : Path, optional
    device : str
    mask_path : Path, optional
    axes : tuple of str, optional
    variable : str, optional
    complex_images : bool
        As in :class:`Reconstructor`, and so is `check`.
    check : bool
    """

    checkpoint: Path
    source: Path
    config_path: Path | None = None
    device: str = "auto"
    mask_path: Path | None = None
    axes: tuple[str, ...] | None = None
    variable: str | None = None
    complex_images: bool = False
    check: bool = True


@dataclass(frozen=True)
class Slices:
    """The slices of a reconstructed volume, which are read from a folder one at a time.

    Attributes
    ----------
    folder : Path
    raw : RawData
        What the file of the input says.
    warnings : tuple of str
        In what k-space differs from that of the training, see :meth:`Reconstructor.find_departures`.
    """

    folder: Path
    raw: RawData
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return self.raw.shape[0]

    def read(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield what is stored under a name of every slice, such as the image, `reconstruction`."""
        for index in range(len(self)):
            with np.load(_slice_path(self.folder, index)) as stored:
                yield stored[name]


class _Scan(NamedTuple):
    weights: tuple[Path, ...]  #: configuration and checkpoints
    reconstructor: Reconstructor
    raw: RawData
    mask: NDArray[Any] | None
    sensitivity_map: RawData | None


@lru_cache(maxsize=1)
def _open(request: Request, call: str) -> _Scan:
    """Open the files of a request, once in each process and for each call of :func:`reconstruct_volume`."""
    raw, mask = open_acquisition(request.source, request.mask_path, request.axes, request.variable)
    if is_pretrained(request.checkpoint):
        name = str(request.checkpoint)
        pretrained = find_pretrained(name)
        weights = (request.config_path or pretrained.config_path, *pretrained.checkpoints)
        reconstructor = Reconstructor.from_pretrained(name, request.config_path, request.device)
    else:
        weights = (request.config_path or request.checkpoint.parent / CONFIG_NAME, request.checkpoint)
        reconstructor = Reconstructor.from_checkpoint(request.checkpoint, request.config_path, request.device)
    maps = open_sensitivity_map(request.source, request.axes) if reconstructor.needs_sensitivity_map else None
    return _Scan(weights, reconstructor, raw, mask, maps)


@contextmanager
def reconstruct_volume(
    request: Request, folder: Path, jobs: int = 1, before: Callable[[RawData], object] = lambda raw: None
) -> Iterator[Slices]:
    """Reconstruct a volume, and yield its slices; then the folder is removed.

    After an interruption of any kind, the same call resumes: slices in the folder are not computed again. The images
    are the same in either case, and those of :class:`Reconstructor`.

    Parameters
    ----------
    request : Request
    folder : Path
        Where finished slices are kept. It is made if it is missing.
    jobs : int
        Number of processes. They share the threads that PyTorch uses; each holds one slice and the model.
    before : callable
        Is called with what the file of the input says, before k-space is read, and may raise.

    Raises
    ------
    FileExistsError
        If the folder is of a run with another input, other weights or other options.
    OSError
        If a file cannot be read, or a process is ended from outside.
    ValueError
        As :class:`Reconstructor`; or if `jobs` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"The number of jobs is {jobs}; expected at least 1.")
    call = uuid4().hex
    weights, reconstructor, raw, mask, maps = _open(request, call)
    before(raw)
    print(*raw.messages, sep="\n", end="\n" if raw.messages else "")
    reconstructor.check_sensitivity_map(None if maps is None else maps.shape, raw.shape)
    summary = summarise(tqdm(raw.slices(), "read", raw.shape[0], unit="slice"), raw.shape)
    was_found = mask is None
    mask = find_mask(summary.acquired) if mask is None else mask
    middle = raw.read_slice(raw.shape[0] // 2)
    is_calibrated = raw.read_calibration is not None
    sampled = reconstructor.check(summary, mask, middle, request.check, is_calibrated)
    found = describe_acquisition(summary.acquired, sampled, was_found, middle, reconstructor.centered)
    print(*found, sep="\n")
    middle_mask = sampled[len(sampled) // 2] if sampled.ndim == 3 else sampled
    departures = reconstructor.find_departures(middle[None], middle_mask) if request.check else []
    for departure in departures:
        print(f"direct-hifimamba: warning: {departure}", file=sys.stderr)
    identity = {
        "input": [
            summary.sha256,
            hashlib.sha256(sampled.tobytes()).hexdigest(),
            None if maps is None else summarise(maps.slices(), maps.shape).sha256,
            is_calibrated,
        ],
        "weights": [hash_file(path) for path in weights],
        "options": [request.device, request.complex_images, raw.image_size],
        "version": direct_hifimamba.__version__,
    }
    folder.mkdir(exist_ok=True)
    with lock_folder(folder):
        if not folder.exists():
            raise FileExistsError("Another process has written the same output; choose another one.")
        _claim(folder, json.loads(json.dumps(identity)))
        with replace_when_complete(folder / _MASK) as path, path.open("wb") as file:
            np.save(file, sampled)
        missing = [index for index in range(raw.shape[0]) if not _is_complete(_slice_path(folder, index))]
        if len(missing) < raw.shape[0]:
            print(f"Resuming: {raw.shape[0] - len(missing)} of {raw.shape[0]} slices are finished.")
        threads = max(1, torch.get_num_threads() // jobs)
        function = partial(_reconstruct, request, call, folder)
        try:
            for _ in map_files(function, missing, jobs, "reconstruct", "slice", threads):
                pass
        except BrokenProcessPool as error:
            raise OSError(
                "A process was ended from outside, perhaps because memory was exhausted. Finished slices are kept: the "
                "same command resumes; take fewer --jobs if it happens again."
            ) from error
        yield Slices(folder, raw, tuple(departures))
        shutil.rmtree(folder)


def _reconstruct(request: Request, call: str, folder: Path, index: int) -> None:
    _, reconstructor, raw, _, maps = _open(request, call)
    sampled = np.load(folder / _MASK)
    image = reconstructor.reconstruct_slice(
        raw.read_slice(index),
        sampled[index] if sampled.ndim == 3 else sampled,
        request.complex_images,
        None if maps is None else maps.read_slice(index),
        raw.image_size,
        index=index,
        calibration=None if raw.read_calibration is None else raw.read_calibration(index),
    )
    with replace_when_complete(_slice_path(folder, index)) as path, path.open("wb") as file:
        np.savez(file, reconstruction=image)


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Note whose slices a folder holds, or make sure that they are of the same run."""
    path = folder / _RUN
    if path.exists():
        known = json.loads(path.read_text())
        differing = [name for name, value in identity.items() if known.get(name) != value]
        if differing:
            raise FileExistsError(
                f"{folder} holds finished slices of another run, with different {' and '.join(differing)}. Remove this "
                "folder, or choose another output."
            )
    else:
        with replace_when_complete(path) as partial_path:
            partial_path.write_text(json.dumps(identity, indent=1))


def _slice_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npz"


def _is_complete(path: Path) -> bool:
    """Return whether a slice can be read; after a power failure, a file may be empty."""
    try:
        with np.load(path) as stored:
            return all(stored[name] is not None for name in stored)
    except (OSError, ValueError, EOFError):
        return False
