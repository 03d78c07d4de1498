"""Tests of direct_hifimamba.data.formats.raw_data. Those of arrays are in registry_test.py."""

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_hifimamba.data.formats.raw_data import describe_mask

COLUMNS = np.arange(40)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (range(20), COLUMNS >= 0, ["k-space is fully sampled."]),
        (
            range(20),
            (COLUMNS % 4 == 2) | (abs(COLUMNS - 20) < 4),
            ["15 of 40 columns have samples, 7 of them around the centre without a gap."],
        ),
        (
            range(20),
            COLUMNS % 2 == 1,
            ["20 of 40 columns have samples, 0 of them around the centre without a gap."],
        ),
        (
            range(4, 20),
            COLUMNS >= 15,
            [
                "4 rows are missing on one side: partial Fourier, or an asymmetric echo.",
                "15 columns are missing on one side: partial Fourier, or an asymmetric echo.",
            ],
        ),
        (range(20), abs(COLUMNS - 20) < 15, ["11 columns on the edges are zero-padding."]),
    ],
)
def test_masks_are_described(rows: range, columns: NDArray[np.bool_], expected: list[str]) -> None:
    assert describe_mask(np.outer(np.isin(range(20), rows), columns)) == expected


def test_masks_of_points_are_described() -> None:
    sampled = np.ones((20, 40), bool)
    sampled[::2, ::2] = False
    assert describe_mask(sampled) == ["75.0% of the samples of these rows and columns were measured."]
