from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from direct_hifimamba.benchmark.report.curves import read_curve


def write(folder: Path, entries: list[dict[str, float]]) -> Path:
    (folder / "metrics.json").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return folder


def test_loss_and_validation(tmp_path: Path) -> None:
    # DIRECT writes nothing but the iteration at first.
    entries = [{"iteration": 0}, {"iteration": 5, "loss": 0.5}, {"iteration": 10, "loss": 0.4}]
    write(tmp_path, entries)
    for iteration, psnr in ((20, 25.0), (0, 10.0), (100, 30.0)):
        scores = {name: {"fastmri_psnr_metric": psnr + shift} for name, shift in (("a.h5", -1), ("b.h5", 1))}
        (tmp_path / f"metrics_val_equispaced_4x_{iteration}.json").write_text(json.dumps(scores))
    curve = read_curve(tmp_path)
    assert curve is not None
    np.testing.assert_array_equal(curve.loss, [[5, 10], [0.5, 0.4]])
    np.testing.assert_array_equal(curve.validation["fastmri_psnr at equispaced_4x"], [[0, 20, 100], [10, 25, 30]])


def test_what_was_trained_twice_counts_once(tmp_path: Path) -> None:
    entries = [{"iteration": i, "loss": loss} for i, loss in ((5, 0.5), (10, 0.4), (15, 0.3), (10, 0.39), (15, 0.29))]
    path = write(tmp_path, entries)
    with (path / "metrics.json").open("a") as file:
        file.write('{"iteration": 20, "lo')  # killed while it wrote
    curve = read_curve(path)
    assert curve is not None
    np.testing.assert_array_equal(curve.loss, [[5, 10, 15], [0.5, 0.39, 0.29]])


def test_without_a_training_there_is_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{"])
def test_of_a_training_that_has_just_begun(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(text)
    curve = read_curve(tmp_path)
    assert curve is not None and curve.loss.shape == (2, 0) and curve.validation == {}
