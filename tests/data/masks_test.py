"""Tests of direct_hifimamba.data.masks."""

import re

import numpy as np
import pytest

from direct_hifimamba.data.masks import MaskOptions, draw_line_mask, draw_mask
from tests.data import lookalikes


@pytest.mark.parametrize(
    ("acceleration", "center_fraction", "width", "num_center_lines"),
    [(4, 0.08, 320, 26), (8, 0.04, 320, 13), (4, 0.08, 128, 10), (5.5, 0.06, 101, 6)],
)
def test_equispaced_mask_reaches_what_was_asked(acceleration, center_fraction, width, num_center_lines):
    mask = draw_mask(MaskOptions("FastMRIEquispaced", acceleration, center_fraction), (24, width), "a.h5", seed=3)
    assert mask.samples.shape == (width,)
    assert mask.samples.dtype == bool
    assert mask.acceleration == width / mask.samples.sum()
    assert mask.acceleration == pytest.approx(acceleration, rel=0.06)
    assert mask.num_center == num_center_lines
    start = (width - num_center_lines + 1) // 2
    assert mask.samples[start : start + num_center_lines].all()


def test_mask_depends_on_name_and_seed_alone():
    def lines(name: str = "a.h5", seed: int = 0) -> list[bool]:
        return draw_mask(MaskOptions("FastMRIRandom", 4, 0.08), (24, 128), name, seed).samples.tolist()

    assert lines() == lines()
    assert lines() != lines(name="b.h5")
    assert lines() != lines(seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MaskOptions("Cartoon", 4, 0.08), "no mask function 'Cartoon'"),
        (MaskOptions("Radial", 4, 0.08), "Masks of Radial are no line masks"),
        (MaskOptions("FastMRIEquispaced", 4), "FastMRIEquispaced need a center fraction"),
        (MaskOptions("FastMRIEquispaced", 1, 0.08), "acceleration is 1; expected a number above 1"),
        (MaskOptions("FastMRIEquispaced", float("nan"), 0.08), "acceleration is nan"),
        (MaskOptions("FastMRIEquispaced", 4, 1.5), "center fraction is 1.5; expected a number between 0 and 1"),
        (MaskOptions("FastMRIEquispaced", 4, 0.001), "samples .* of 64 columns; .* needs the centre column"),
        (MaskOptions("FastMRIEquispaced", 1.01, 0.5), "samples .* of 64 columns; .* a gap on either side"),
    ],
)
def test_unusable_mask_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_line_mask(options, (24, 64), "a.h5", seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; expected"):
        draw_mask(MaskOptions("FastMRIRandom", 4, 0.08), (24, 64), "a.h5", seed)


@pytest.mark.parametrize("acceleration", [16, 32])
def test_radial_mask_reaches_what_was_asked(acceleration):
    mask = draw_mask(MaskOptions("Radial", acceleration), (128, 96), "a.h5", seed=3)
    assert mask.samples.shape == (128, 96)
    assert not mask.is_line_mask
    assert mask.acceleration == 128 * 96 / mask.samples.sum()
    assert mask.acceleration == pytest.approx(acceleration, rel=0.06)
    assert mask.samples[64, 48]
    assert mask.provenance() == {"acceleration": mask.acceleration, "num_center_samples": mask.num_center}


@pytest.mark.parametrize("words", ["Radial", "Radial x", "Radial 16 0.1 2", "FastMRIEquispaced 4 x"])
def test_words_that_are_no_mask_are_refused(words):
    with pytest.raises(ValueError, match=f"The mask is '{words}'; expected a name and two numbers"):
        MaskOptions.from_words(words.split())


def test_words():
    assert MaskOptions.from_words(["Radial", "16"]) == MaskOptions("Radial", 16.0)
    assert MaskOptions.from_words(["FastMRIRandom", "4", "0.08"]) == MaskOptions("FastMRIRandom", 4.0, 0.08)


def test_masks_of_the_challenge_are_those_of_its_files(tmp_path, monkeypatch):
    folder = lookalikes.calgary_campinas_masks(tmp_path, monkeypatch)
    options = MaskOptions("CalgaryCampinas", 5)
    mask = draw_mask(options, (218, 170), "a.h5", seed=0)
    stored = np.load(folder / "R5_218x170.npy")
    assert any(np.array_equal(mask.samples, other) for other in stored)
    drawn = {draw_mask(options, (218, 170), f"{name}.h5", seed=0).samples.tobytes() for name in range(20)}
    assert len(drawn) == len(stored)
    rows, columns = np.ogrid[:218, :170]
    np.testing.assert_array_equal(mask.center, (rows - 109) ** 2 + (columns - 85) ** 2 <= 18**2)


def test_missing_masks_of_the_challenge_are_named_and_counted(tmp_path, monkeypatch):
    folder = lookalikes.calgary_campinas_masks(tmp_path, monkeypatch)
    monkeypatch.setattr("direct.common.subsample.CalgaryCampinasMaskFunc.BASE_URL", "http://127.0.0.1:9/")
    (folder / "R10_218x170.npy").write_bytes(b"damaged")
    (folder / "R10_218x180.npy").unlink()
    draw_mask(MaskOptions("CalgaryCampinas", 5), (218, 180), "a.h5", seed=0)
    message = rf"{re.escape(str(folder))} lacks R10_218x170\.npy and 1 more of the 3 mask files"
    with pytest.raises(FileNotFoundError, match=message):
        draw_mask(MaskOptions("CalgaryCampinas", 10), (218, 180), "a.h5", seed=0)
