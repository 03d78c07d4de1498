"""Scores of folders of predictions; what was scored before is not scored again."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from direct_hifimamba.benchmark.plan.hashes import list_files
from direct_hifimamba.benchmark.score.images import load_reconstruction, load_target, load_zero_filled
from direct_hifimamba.benchmark.score.metrics import DEFAULT, METRICS, Array, metric_definitions, score_volume
from direct_hifimamba.benchmark.score.spectrum import BANDS, EDGES, error_spectrum
from direct_hifimamba.benchmark.score.table import RunTable

ALWAYS = (*DEFAULT, *BANDS)
"""Metrics and bands of the error spectrum that are computed unless others are asked for."""


class Volume(NamedTuple):
    """A reconstruction to score.

    Attributes
    ----------
    data : Path
        The file with the fully sampled k-space.
    prediction : Path
        The file with the reconstruction.
    is_centered : bool
        Whether the Fourier transform is.
    is_zero_filled : bool
        Score the zero-filled image instead, cropped to the size of the reconstruction.
    """

    data: Path
    prediction: Path
    is_centered: bool
    is_zero_filled: bool = False

    @property
    def scored(self) -> Path:
        """The file with the image that is scored."""
        return self.data if self.is_zero_filled else self.prediction

    def load_image(self) -> NDArray[np.float32]:
        """Return the image that is scored, of shape (slices, height, width)."""
        image = load_reconstruction(self.prediction)
        return load_zero_filled(self.data, image.shape[1:], self.is_centered) if self.is_zero_filled else image

    def load_target(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return the fully sampled image, cropped to a height and width."""
        return load_target(self.data, shape, self.is_centered)


def find_volumes(data: Path, predictions: Path, is_centered: bool) -> list[Volume]:
    """Return the volumes of a folder with their predictions.

    Raises
    ------
    ValueError
        If a prediction is missing, or is that of another file.
    """
    expected = {path.name: path for path in list_files(data)}
    found = {path.name for path in list_files(predictions)} if predictions.is_dir() else set()
    for names, problem in (
        (expected.keys() - found, "lacks the prediction of"),
        (found - expected.keys(), "holds a prediction of another file,"),
    ):
        if names:
            raise ValueError(
                f"{predictions} {problem} {min(names)}; expected one prediction of each of the {len(expected)} files "
                f"in {data}. Remove {predictions.name}/ there, and the same command predicts again."
            )
    return [Volume(path, predictions / name, is_centered) for name, path in expected.items()]


def score_run(tables: Mapping[Path, Sequence[Volume]], metrics: Iterable[str] = ALWAYS) -> dict[Path, pa.Table]:
    """Score what was not scored yet of a run, and write its tables.

    Parameters
    ----------
    tables : mapping
        Volumes by the path of their table.
    metrics : iterable of str
        Names of metrics, and of bands of the error spectrum.

    Returns
    -------
    dict
        By path the table, with these metrics only.

    Raises
    ------
    ValueError
        If a table is damaged, or a prediction does not fit its file.
    """
    definitions = _definitions(metrics)
    found = {}
    for path, volumes in tables.items():
        table, names = _update(path, volumes, definitions)
        if names:
            bar = tqdm(volumes, f"score {path.parent.parent.name}, {path.stem}", unit="file")
            scores = {volume.data.name: _score(volume, names) for volume in bar}
            table = table.extend(scores, {name: definitions[name] for name in names})
        table.write(path)
        found[path] = table.select(definitions)
    return found


def is_scored(tables: Mapping[Path, Sequence[Volume]], metrics: Iterable[str]) -> bool:
    """Return whether :func:`score_run` would find that all of this has been scored; raises what it raises."""
    definitions = _definitions(metrics)
    return not any(_update(path, volumes, definitions)[1] for path, volumes in tables.items())


def _definitions(metrics: Iterable[str]) -> dict[str, str]:
    bands = dict.fromkeys(BANDS, f"relative error energy between {EDGES}")
    known = metric_definitions(METRICS) | bands
    return {name: known[name] for name in metrics}


def _update(path: Path, volumes: Sequence[Volume], definitions: Mapping[str, str]) -> tuple[RunTable, list[str]]:
    contents = {volume.data.name: volume.scored for volume in volumes}
    return RunTable.read(path).update(contents, definitions)


def _score(volume: Volume, names: Sequence[str]) -> dict[str, Array]:
    image = volume.load_image()
    target = volume.load_target(image.shape[1:])
    try:
        scores = score_volume(target, image, [name for name in names if name in METRICS])
    except ValueError as error:
        raise ValueError(f"{volume.scored} cannot be scored: {error}") from error
    if not METRICS.keys() >= set(names):
        scores |= dict(zip(BANDS, error_spectrum(target, image)[:, None], strict=True))
    return scores
