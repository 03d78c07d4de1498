"""Scores of whole folders of predictions, in several processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py

from direct_hifimamba.benchmark.plan.inputs import list_files
from direct_hifimamba.benchmark.run.runner import Run
from direct_hifimamba.benchmark.score.images import load_reconstruction, load_target, load_zero_filled
from direct_hifimamba.benchmark.score.scores import VolumeScores, score_volume
from direct_hifimamba.data.formats.hdf5 import kspace_shape
from direct_hifimamba.data.parallel import map_files


class Volume(NamedTuple):
    """A reconstruction to score.

    Attributes
    ----------
    acceleration : str
    data : Path
        The file with the fully sampled k-space.
    prediction : Path, optional
        The file with the reconstruction. None: the zero-filled image.
    reference : Path, optional
        The file with a reconstruction of the size to which the zero-filled image is cropped. None: it is not.
    is_centered : bool
        Whether the Fourier transform is.
    """

    acceleration: str
    data: Path
    prediction: Path | None
    reference: Path | None
    is_centered: bool


def volumes_of(run: Run, is_centered: bool) -> list[Volume]:
    """What a finished run has reconstructed."""
    return [
        Volume(acceleration, path, run.folder.predictions(acceleration) / path.name, None, is_centered)
        for acceleration, folder in run.prediction_data.items()
        for path in list_files(folder)
    ]


def score_volumes(volumes: Sequence[Volume], jobs: int, description: str) -> list[VolumeScores]:
    """Scores in the order of the volumes, with a progress bar."""
    return list(map_files(_score, volumes, jobs, description)) if volumes else []


def _score(volume: Volume) -> VolumeScores:
    if volume.prediction is not None:
        image = load_reconstruction(volume.prediction)
    else:
        image = load_zero_filled(volume.data, _shape(volume), volume.is_centered)
    height, width = image.shape[1:]
    return score_volume(load_target(volume.data, (height, width), volume.is_centered), image)


def _shape(volume: Volume) -> tuple[int, int]:
    if volume.reference is not None:
        with h5py.File(volume.reference) as file:
            height, width = file["reconstruction"].shape[1:]
    else:
        with h5py.File(volume.data) as file:
            height, width = kspace_shape(file)[-2:]
    return height, width
