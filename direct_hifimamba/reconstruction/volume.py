"""Reconstruction of whole volumes in bounded memory.

Slices are read, reconstructed and stored one at a time, in one or several processes. Until the volume is complete,
finished slices are kept in a hidden folder beside the output, so that an interrupted run resumes.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import direct_hifimamba
from direct_hifimamba.data import acquisition
from direct_hifimamba.data.formats.raw_data import RawData
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.files import first_and_count, hash_file, lock_folder
from direct_hifimamba.reconstruction import noise
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME, find_pretrained, is_pretrained
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from direct_hifimamba.reconstruction.slices import (
    IMAGE,
    NOISE,
    RESIDUAL,
    RESIDUAL_OF_SLICE,
    SPREAD,
    Slices,
    refuse_existing,
)
from direct_hifimamba.reconstruction.uncertainty import MAX_RESIDUAL, Calibration, residual_map, spread

_NOISE_SLICES = 16
"""Number of slices, evenly spread, from which the noise is estimated at most."""


_UNCALIBRATED = (
    "The spread is not calibrated for this ensemble, and is too small as an error bar. Use weights in the package "
    "without --no-flips, or a file of direct-hifimamba calibrate (--calibration)."
)


@dataclass(frozen=True)
class Request:
    """What to reconstruct, and how.

    Attributes
    ----------
    checkpoints : tuple of Path
        As in :meth:`Reconstructor.from_checkpoint`, and so are `config_path` and `device`; or one name as in
        :meth:`Reconstructor.from_pretrained`.
    source : Path
        File of raw data, see :func:`direct_hifimamba.data.acquisition.open_acquisition`, and so are `mask_path`,
        `axes` and `variable`.
    config_path : Path, optional
    device : str
    mask_path : Path, optional
    sensitivity_map_path : Path, optional
        File of coil sensitivities. Default: `source`, if the configuration needs them.
    axes : tuple of str, optional
    variable : str, optional
    complex_images : bool
        As in :class:`Reconstructor`, and so is `check`.
    check : bool
    replicas : int, optional
        Number of pseudo-replicas for maps of the noise.
    uncertainty : bool
        Whether the spread of an ensemble and the residual at the samples are computed.
    calibration : Path, optional
        File of :class:`Calibration`. Default: that of weights in the package, used as they were released.
    flips : bool, optional
        As in :meth:`Reconstructor.from_pretrained`; for checkpoints, None means False.
    """

    checkpoints: tuple[Path, ...]
    source: Path
    config_path: Path | None = None
    device: str = "auto"
    mask_path: Path | None = None
    sensitivity_map_path: Path | None = None
    axes: tuple[str, ...] | None = None
    variable: str | None = None
    complex_images: bool = False
    check: bool = True
    replicas: int | None = None
    uncertainty: bool = False
    calibration: Path | None = None
    flips: bool | None = None


class _Scan(NamedTuple):
    weights: list[str]  #: see :func:`load`
    reconstructor: Reconstructor
    raw: RawData
    mask: NDArray[Any] | None
    sensitivity_map: RawData | None


def load(
    checkpoints: Sequence[Path],
    config_path: Path | None = None,
    device: str = "auto",
    flips: bool | None = None,
) -> tuple[list[str], Reconstructor]:
    """Load checkpoints, or weights in the package, and return what determines their images, and the model.

    That are the SHA-256 of the configuration and of the checkpoints, and the number of images in the mean.

    Raises
    ------
    ValueError
        As :meth:`Reconstructor.from_checkpoint`, if a name in the package is one of several, or if two checkpoints are
        the same.
    """
    if len(checkpoints) > 1 or not is_pretrained(checkpoints[0]):
        reconstructor = Reconstructor.from_checkpoint(checkpoints, config_path, device, bool(flips))
        files = (config_path or checkpoints[0].parent / CONFIG_NAME, *checkpoints)
    else:
        pretrained = find_pretrained(str(checkpoints[0]))
        reconstructor = Reconstructor.from_pretrained(pretrained.name, config_path, device, flips)
        files = (config_path or pretrained.config_path, *pretrained.checkpoints)
    _, *hashes = weights = [hash_file(path) for path in files]
    for number, (path, checksum) in enumerate(zip(files[1:], hashes, strict=True)):
        if checksum in hashes[:number]:
            raise ValueError(f"{path} is the same as {files[1 + hashes.index(checksum)]}; expected different networks.")
    return [*weights, f"mean of {reconstructor.members}"], reconstructor


@lru_cache(maxsize=1)
def _open(request: Request, call: str) -> _Scan:
    """Open the files of a request, once in each process and for each call of :func:`reconstruct_volume`."""
    raw, mask = acquisition.open_acquisition(request.source, request.mask_path, request.axes, request.variable)
    weights, reconstructor = load(request.checkpoints, request.config_path, request.device, request.flips)
    maps: RawData | None = None
    if request.sensitivity_map_path is not None:
        maps = acquisition.open_sensitivity_map(request.sensitivity_map_path, request.axes, is_separate=True)
    elif reconstructor.needs_sensitivity_map:
        maps = acquisition.open_sensitivity_map(request.source, request.axes)
    return _Scan(weights, reconstructor, raw, mask, maps)


@contextmanager
def reconstruct_volume(
    request: Request,
    folder: Path,
    jobs: int | None = None,
    before: Callable[[RawData], object] = lambda raw: None,
    outputs: Iterable[Path] = (),
) -> Iterator[Slices]:
    """Reconstruct a volume, and yield its slices; then the folder is removed.

    After an interruption of any kind, the same call resumes: slices in the folder are not computed again. The images
    are the same in either case, and those of :class:`Reconstructor`.

    Parameters
    ----------
    request : Request
    folder : Path
        Where finished slices are kept. It is made if it is missing.
    jobs : int, optional
        Number of processes, each with one thread, one slice and the model; the images do not depend on it. None: this
        process, with all threads of PyTorch, which rounds differently.
    before : callable
        Is called with what the file of the input says, before k-space is read, and may raise.
    outputs : iterable of Path
        The files that will be written.

    Raises
    ------
    FileExistsError
        If the folder is of a run with another input, other weights or other options; or if another run has written one
        of `outputs` in the meantime.
    OSError
        If a file cannot be read, or a process is ended from outside.
    ValueError
        As :class:`Reconstructor`; or if `jobs` is below 1.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"The number of jobs is {jobs}; expected at least 1.")
    if request.replicas is not None:
        noise.check_replicas(request.replicas)
    call = uuid4().hex
    weights, reconstructor, raw, mask, maps = _open(request, call)
    before(raw)
    calibration = _find_calibration(request, weights) if request.uncertainty else None
    print(*raw.messages, sep="\n", end="\n" if raw.messages else "")
    reconstructor.check_sensitivity_map(None if maps is None else maps.shape, raw.shape)
    summary = acquisition.summarise(tqdm(raw.slices(), "read", raw.shape[0], unit="slice"), raw.shape)
    was_found = mask is None
    mask = acquisition.find_mask(summary.acquired) if mask is None else mask
    middle = raw.read_slice(raw.shape[0] // 2)
    is_calibrated = raw.read_calibration is not None
    sampled = reconstructor.check(summary, mask, middle, request.check, is_calibrated)
    found = acquisition.describe_acquisition(summary.acquired, sampled, was_found, middle, reconstructor.centered)
    print(*found, sep="\n")
    masks = np.broadcast_to(sampled, (raw.shape[0], *raw.shape[2:]))
    warnings = reconstructor.find_departures(middle[None], masks[len(masks) // 2]) if request.check else []
    if request.uncertainty and reconstructor.members > 1:
        warnings += [_UNCALIBRATED] if calibration is None else calibration.find_departures(sampled)
    for warning in warnings:
        print(f"direct-hifimamba: warning: {warning}", file=sys.stderr)
    factor = None if calibration is None else calibration.factor(sampled)
    covariance = _find_covariance(raw, masks) if request.replicas is not None or request.uncertainty else None
    threads = torch.get_num_threads() if jobs is None else 1
    identity = {
        "input": [
            summary.sha256,
            hashlib.sha256(sampled.tobytes()).hexdigest(),
            None if maps is None else acquisition.summarise(maps.slices(), maps.shape).sha256,
            None
            if raw.read_calibration is None
            else acquisition.summarise(map(raw.read_calibration, range(raw.shape[0])), raw.shape).sha256,
        ],
        "weights": weights,
        "options": [
            *(request.device, request.complex_images, raw.image_size),
            *(request.replicas, request.uncertainty, factor),
        ],
        "number of threads": threads,
        "version": direct_hifimamba.__version__,
    }
    folder.mkdir(exist_ok=True)
    with lock_folder(folder):
        if not folder.exists():
            raise FileExistsError("Another process has written the same output; choose another one.")
        slices = Slices(folder, raw, tuple(weights), tuple(warnings), factor=factor)
        try:
            refuse_existing(outputs, folder)
        except FileExistsError:
            with suppress(OSError):  # if it holds finished slices
                folder.rmdir()
            raise
        slices.claim(json.loads(json.dumps(identity)))
        missing = slices.missing()
        if len(missing) < raw.shape[0]:
            print(f"Resuming: {raw.shape[0] - len(missing)} of {raw.shape[0]} slices are finished.")
        function = partial(_reconstruct, request, call, weights, folder, factor, covariance)
        tasks = [(index, masks[index]) for index in missing]
        try:
            for _ in map_files(function, tasks, jobs or 1, "reconstruct", "slice", threads):
                pass
        except BrokenProcessPool as error:
            raise OSError(
                "A process was ended from outside, perhaps because memory was exhausted. Finished slices are kept: the "
                "same command resumes; take fewer --jobs if it happens again."
            ) from error
        yield _add_residuals(slices)
        shutil.rmtree(folder)


def _find_calibration(request: Request, weights: list[str]) -> Calibration | None:
    """Return the calibration that was asked for, or that of weights in the package, if it is of this ensemble."""
    if request.calibration is not None:
        return Calibration.read(request.calibration, weights)
    if len(request.checkpoints) == 1 and is_pretrained(request.checkpoints[0]):
        released = Calibration.read(find_pretrained(str(request.checkpoints[0])).calibration_path)
        return released if released.weights == tuple(weights) else None
    return None


def _reconstruct(
    request: Request,
    call: str,
    weights: list[str],
    folder: Path,
    factor: float | None,
    covariance: NDArray[np.complex128] | None,
    task: tuple[int, NDArray[np.bool_]],
) -> None:
    """Reconstruct and store one slice; a task is its number and its mask, of shape (height, width)."""
    found, reconstructor, raw, _, maps = _open(request, call)
    if found != weights:
        raise ValueError("Configuration or checkpoints have changed since the start; start again.")
    index, sampled = task
    kspace = raw.read_slice(index)
    options: dict[str, Any] = {
        "sensitivity_map": None if maps is None else maps.read_slice(index),
        "image_size": raw.image_size,
        "index": index,
        "calibration": None if raw.read_calibration is None else raw.read_calibration(index),
    }
    arrays: dict[str, Any] = {}
    if request.uncertainty:
        assert covariance is not None
        analysis = reconstructor.analyse_slice(kspace, sampled, **options)
        arrays[IMAGE] = analysis.image if request.complex_images else np.abs(analysis.image)
        arrays[RESIDUAL], arrays[RESIDUAL_OF_SLICE] = residual_map(analysis.residual, covariance)
        if len(analysis.images) > 1:
            arrays[SPREAD] = spread(analysis.images) * np.float32(factor or 1)
    else:
        arrays[IMAGE] = reconstructor.reconstruct_slice(kspace, sampled, request.complex_images, **options)
    if request.replicas is not None:
        assert covariance is not None
        reconstruct = partial(reconstructor.reconstruct_slice, sampled=sampled, **options)
        arrays[NOISE] = noise.noise_map(reconstruct, kspace, sampled, covariance, request.replicas, seed=index)
    Slices(folder, raw).write(index, arrays)


def _add_residuals(slices: Slices) -> Slices:
    """Add the residuals, if there are any, and a warning of images that do not fit their samples."""
    if RESIDUAL not in slices.maps:
        return slices
    residuals = tuple(map(float, slices.read(RESIDUAL_OF_SLICE)))
    numbers = " ".join(f"{residual:.2f}" for residual in residuals)
    print(f"Residual of each slice at its samples, in standard deviations of the noise: {numbers}")
    outside = [index for index, residual in enumerate(residuals) if residual > MAX_RESIDUAL]
    warnings = slices.warnings
    if outside:
        warning = (
            f"The residual of slice {first_and_count([str(index) for index in outside])} is above {MAX_RESIDUAL:g} "
            "standard deviations of the noise: the image does not fit its samples (docs/uncertainty.md)."
        )
        print(f"direct-hifimamba: warning: {warning}", file=sys.stderr)
        warnings = (*warnings, warning)
    return replace(slices, residuals=residuals, warnings=warnings)


def _find_covariance(raw: RawData, masks: NDArray[np.bool_]) -> NDArray[np.complex128]:
    """Return the covariance of the noise, from the file if it was measured, and say where it is from.

    `masks` has the shape (slices, height, width).
    """
    if raw.noise_covariance is not None:
        print("The noise is that of the noise scan.")
        covariance = raw.noise_covariance
    else:
        print("The noise is estimated at the edge of k-space, as the file has no noise scan.")
        chosen = np.linspace(0, len(masks) - 1, min(len(masks), _NOISE_SLICES)).round().astype(int).tolist()
        covariance = noise.estimate_noise_covariance(map(raw.read_slice, chosen), masks[chosen])
    noise.whitening_matrix(covariance)
    return covariance
