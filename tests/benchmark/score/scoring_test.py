from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from direct_hifimamba.benchmark.score import scoring
from direct_hifimamba.benchmark.score.metrics import DEFAULT
from direct_hifimamba.benchmark.score.scoring import ALWAYS, Volume, find_volumes, score_run
from direct_hifimamba.benchmark.score.spectrum import BANDS
from direct_hifimamba.data.formats.hdf5 import write_cmrxrecon, write_view, write_volume
from tests.data.lookalikes import centred_fft, magnitude, measure

NAMES = ("a.h5", "b.h5")


def write_data(folder: Path, coils: int = 2) -> Path:
    """Two test files with masks; the predictions are the targets with noise."""
    for name in ("volumes", "test", "predictions"):
        (folder / name).mkdir()
    for index, name in enumerate(NAMES):
        images = measure(magnitude(index, 2, 48, 64), coils, 0)
        write_volume(folder / "volumes" / name, centred_fft(images), {})
        write_view(folder / "test" / name, folder / "volumes" / name, np.arange(64) % 3 == 0, {})
        write_prediction(folder, name, np.linalg.norm(images, axis=1) + index + 1)
    return folder


def write_prediction(folder: Path, name: str, image: np.ndarray) -> None:
    with h5py.File(folder / "predictions" / name, "w") as file:
        file["reconstruction"] = image.astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """File and metrics of everything that is computed."""
    found: list[tuple[str, list[str]]] = []

    def score(volume: Volume, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        found.append((volume.data.name, [name for name in names if name not in BANDS]))
        return original(volume, names)

    original = scoring._score
    monkeypatch.setattr(scoring, "_score", score)
    return found


def score(folder: Path, metrics: Sequence[str] = ALWAYS) -> pa.Table:
    volumes = find_volumes(folder / "test", folder / "predictions", True)
    (table,) = score_run({folder / "scores" / "4x.parquet": volumes}, metrics).values()
    return table


@pytest.mark.parametrize("coils", [0, 3])
def test_scores_do_not_depend_on_the_form_of_the_file(tmp_path: Path, coils: int) -> None:
    images = measure(magnitude(0, 2, 96, 64), 3, 0)
    for name in ("volumes", "test"):
        (tmp_path / name).mkdir()
    volume, view, radial, other = (tmp_path / name for name in ("volumes/a.h5", "test/a.h5", "test/a.mat", "b.mat"))
    write_volume(volume, centred_fft(images if coils else images[:, 0]), {})
    columns = np.arange(64) % 3 == 0
    write_view(view, volume, columns, {})
    write_cmrxrecon(radial, volume, np.tile(columns, (96, 1)), {})
    write_cmrxrecon(other, volume, np.tile(np.arange(96)[:, None] % 3 == 0, (1, 64)), {})
    with h5py.File(reference := tmp_path / "reference.h5", "w") as file:
        file["reconstruction"] = np.zeros((2, 96, 64), np.float32)
    volumes = [Volume(path, reference, True, is_zero_filled=True) for path in (view, radial, other)]
    runs = {tmp_path / f"{volume.data.suffix}.{volume.data.stem}": [volume] for volume in volumes}
    found = [table.column("value").to_pylist() for table in score_run(runs).values()]
    assert found[0] == found[1] != found[2]


def test_nothing_is_scored_twice(folder: Path, computed: list[tuple[str, list[str]]]) -> None:
    first = score(folder)
    assert computed == [(name, list(DEFAULT)) for name in NAMES]
    assert {row["slice"] for row in first.to_pylist() if row["metric"] in BANDS} == {None}
    computed.clear()
    assert score(folder).equals(first) and computed == []
    more = score(folder, [*ALWAYS, "hfen"])
    assert computed == [(name, ["hfen"]) for name in NAMES]
    assert set(more["metric"].unique().to_pylist()) == {*DEFAULT, "hfen", *BANDS}
    computed.clear()
    assert score(folder).equals(first) and computed == []  # what was not asked for is not returned


def test_what_has_changed_is_scored_again(
    folder: Path, computed: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(folder, ["fastmri_nmse"])
    computed.clear()
    (folder / "predictions" / "a.h5").touch()  # of the same content
    assert score(folder, ["fastmri_nmse"]).equals(first) and computed == []
    write_prediction(folder, "b.h5", np.ones((2, 48, 64)))
    changed = score(folder, ["fastmri_nmse"])
    assert computed == [(name, ["fastmri_nmse"]) for name in NAMES]
    assert changed["value"][:2].equals(first["value"][:2]) and not changed["value"][2:].equals(first["value"][2:])
    computed.clear()
    monkeypatch.setattr(scoring, "metric_definitions", lambda names: dict.fromkeys(names, "another version"))
    score(folder, ["fastmri_nmse"])
    assert [file for file, _ in computed] == list(NAMES)


def test_files_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(folder)
    (folder / "predictions" / "a.h5").touch()
    score(folder)
    read: list[int] = []
    digest = "direct_hifimamba.benchmark.score.table.hash_file"
    monkeypatch.setattr(digest, lambda *_: read.append(1))
    score(folder)
    assert read == []


def test_missing_predictions_and_those_of_other_files_are_refused(folder: Path) -> None:
    (folder / "predictions" / "b.h5").rename(folder / "predictions" / "c.h5")
    with pytest.raises(ValueError, match=r"predictions lacks the prediction of b.h5; expected one .* each of the 2"):
        score(folder)
    write_prediction(folder, "b.h5", np.ones((2, 48, 64)))
    with pytest.raises(ValueError, match=r"predictions holds a prediction of another file, c.h5; expected one"):
        score(folder)


def test_a_prediction_that_does_not_fit_is_refused(folder: Path) -> None:
    write_prediction(folder, "b.h5", np.ones((3, 48, 64)))
    with pytest.raises(ValueError, match=r"b.h5 cannot be scored: The target has the shape \(2, 48, 64\)"):
        score(folder)
    assert not (folder / "scores" / "4x.parquet").exists()
