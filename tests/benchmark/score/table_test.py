from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.table import RUN_SCHEMA, SCHEMA, RunTable, Scores, make_table

PSNR = {"a.h5": np.array([30.0, 32.0, np.nan]), "b.h5": np.array([20.0])}


def make_scores() -> Scores:
    tables = {}
    for seed in (1, 0):
        scored = {file: {"fastmri_psnr": values + seed, "spectrum_0": np.array([0.5])} for file, values in PSNR.items()}
        tables["U-Net", seed, "4x"] = make_table(scored)
    tables["zero-filled", None, "8x"] = make_table({"a.h5": {"fastmri_ssim": np.array([0.5, 0.7])}})
    return Scores.join(tables)


def test_scores_survive_saving(tmp_path: Path) -> None:
    scores = make_scores()
    scores.save(tmp_path / "scores.parquet")
    loaded = Scores.load(tmp_path / "scores.parquet")
    assert loaded.table.equals(scores.table) and [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    assert (loaded.models, loaded.accelerations) == (["U-Net", "zero-filled"], ["4x", "8x"])
    assert loaded.metrics == [name for name in METRICS if name in ("fastmri_psnr", "fastmri_ssim")]


def test_scores_are_found_by_model_acceleration_and_metric() -> None:
    scores = make_scores()
    slices = scores.slices("U-Net", "4x", "fastmri_psnr")
    assert list(slices) == scores.seeds("U-Net", "4x") == [1, 0]
    np.testing.assert_array_equal(slices[0]["a.h5"], PSNR["a.h5"])
    np.testing.assert_array_equal(slices[1]["b.h5"], PSNR["b.h5"] + 1)
    assert scores.volumes("zero-filled", "8x", "fastmri_ssim") == {None: {"a.h5": pytest.approx(0.6)}}
    assert scores.volumes("U-Net", "4x", "spectrum_0")[0] == {"a.h5": 0.5, "b.h5": 0.5}
    assert scores.slices("U-Net", "8x", "fastmri_psnr") == {} and scores.seeds("nobody", "4x") == []


def test_psnr_of_a_volume_is_that_of_its_mean_error() -> None:
    expected = -10 * np.log10((1e-3 + 10**-3.2) / 3)  # a slice has no error
    assert make_scores().volumes("U-Net", "4x", "fastmri_psnr")[0]["a.h5"] == pytest.approx(expected)


def test_models_can_be_renamed() -> None:
    renamed = Scores(make_scores().of_model("U-Net", "other"))
    assert renamed.models == ["other"] and renamed.seeds("other", "4x") == [1, 0]


def test_no_run_at_all() -> None:
    scores = Scores.join({})
    assert (scores.models, scores.metrics, scores.table.schema) == ([], [], SCHEMA)


@pytest.mark.parametrize("load", [Scores.load, RunTable.read])
def test_damaged_and_other_tables_are_refused(load: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"scores.parquet is damaged .* Remove it"):
        load(path)
    pq.write_table(pa.table({"file": ["a"]}), path)
    with pytest.raises(ValueError, match=r"has the columns file \(string\); expected a table of scores with"):
        load(path)


def test_a_table_without_its_record_is_refused(tmp_path: Path) -> None:
    pq.write_table(RUN_SCHEMA.empty_table(), tmp_path / "4x.parquet")
    with pytest.raises(ValueError, match=r"4x.parquet does not say what it was computed from"):
        RunTable.read(tmp_path / "4x.parquet")
