"""Finished slices of a volume, each in a file of one folder, so that an interrupted run resumes."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.raw_data import RawData
from direct_hifimamba.files import replace_when_complete, write_text

IMAGE, NOISE, SPREAD, RESIDUAL = "reconstruction", "noise", "spread", "residual"
"""Names of the image of a slice and of its maps."""

RESIDUAL_OF_SLICE = "residual_of_slice"
"""Name of the residual of a whole slice, a number."""

_RUN = "run.json"
"""Name of the file in the folder that is written when a run begins."""

_WHITE = 0.999
"""Quantile of the values of an image or map that is shown white."""


def refuse_existing(outputs: Iterable[Path], folder: Path) -> None:
    """Make sure that a run writes new files only.

    Parameters
    ----------
    outputs : iterable of Path
        The files that the run writes.
    folder : Path
        The folder of its finished slices. If it is of an interrupted run, that run may have begun to write its files.

    Raises
    ------
    FileExistsError
        If a file exists that is older than the run.
    """
    run = folder / _RUN
    for path in outputs:
        if path.exists() and not (run.exists() and run.stat().st_mtime_ns <= path.stat().st_mtime_ns):
            raise FileExistsError(f"{path} exists already; remove it or choose another output.")


@dataclass(frozen=True)
class Slices:
    """The slices of a reconstructed volume, each in a file of a folder; one is held at a time.

    Attributes
    ----------
    folder : Path
    raw : RawData
        What the file of the input says.
    weights : tuple of str
        What determines the images, see :func:`direct_hifimamba.reconstruction.volume.load`.
    warnings : tuple of str
        In what k-space differs from that of the training, see :meth:`Reconstructor.find_departures`, which slices do
        not fit their samples, and whether the spread is not calibrated.
    residuals : tuple of floats
        Of each slice, see :func:`residual_map`, if there is this map.
    factor : float, optional
        With which the spread was calibrated.
    """

    folder: Path
    raw: RawData
    weights: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    residuals: tuple[float, ...] = ()
    factor: float | None = None

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npz"

    def claim(self, identity: dict[str, Any]) -> None:
        """Note whose slices the folder holds, or make sure that they are of the same run.

        Raises
        ------
        FileExistsError
            If they are of a run with another `identity`, or if `run.json` cannot be read.
        """
        path = self.folder / _RUN
        if not path.exists():
            write_text(path, json.dumps(identity, indent=1))
        try:
            known = json.loads(path.read_text())
        except ValueError:  # after a power failure, the file may be empty
            raise FileExistsError(f"{path} is damaged; remove the folder {self.folder}.") from None
        differing = [name for name, value in identity.items() if known.get(name) != value]
        if differing:
            raise FileExistsError(
                f"{self.folder} holds finished slices of another run, with different {' and '.join(differing)}. Remove "
                "this folder, or choose another output."
            )

    def missing(self) -> list[int]:
        """Return the numbers of the slices that are not finished."""
        return [index for index in range(self.raw.shape[0]) if not self._is_complete(index)]

    def _is_complete(self, index: int) -> bool:
        """Return whether a slice can be read; after a power failure, a file may be empty or cut short."""
        try:
            with self._path(index).open("rb") as file, np.load(file) as stored:  # closed even if it is no archive
                return all(stored[name] is not None for name in stored)
        except (OSError, ValueError, EOFError, BadZipFile):
            return False

    def write(self, index: int, arrays: dict[str, Any]) -> None:
        """Store the image of a slice and its maps, by their names."""
        with replace_when_complete(self._path(index)) as path, path.open("wb") as file:
            np.savez(file, **arrays)

    @property
    def maps(self) -> list[str]:
        """Names of the maps that were computed, of `NOISE`, `SPREAD` and `RESIDUAL`."""
        with np.load(self._path(0)) as stored:
            return [name for name in (NOISE, SPREAD, RESIDUAL) if name in stored]

    def read(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield the image (`IMAGE`) or a map of every slice."""
        for index in range(self.raw.shape[0]):
            with np.load(self._path(index)) as stored:
                yield stored[name]

    def read_side_by_side(self) -> Iterator[NDArray[np.float32]]:
        """Yield the magnitude of every slice with its maps on the right, each scaled so that the brightest are 1.

        The residual is left out where images are cropped, as it has the size of k-space.
        """
        shape = next(self.read(IMAGE)).shape
        names = [IMAGE, *(name for name in self.maps if next(self.read(name)).shape == shape)]
        whites = [max(np.quantile(np.abs(image), _WHITE) for image in self.read(name)) or 1.0 for name in names]
        for images in zip(*map(self.read, names), strict=True):
            scaled = [np.abs(image) / white for image, white in zip(images, whites, strict=True)]
            yield np.concatenate(scaled, axis=1).clip(0, 1).astype(np.float32)
