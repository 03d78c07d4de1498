from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from direct_hifimamba.benchmark.report.style import COLOURS, choose_styles

# Machado, Oliveira and Fernandes, doi:10.1109/TVCG.2009.113, table of severity 1, for linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(axis=1)


def linear(colour: str) -> np.ndarray:
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def cielab(colour: str, vision: str) -> np.ndarray:
    ratio = XYZ @ np.clip(np.asarray(VISIONS[vision]) @ linear(colour), 0, 1) / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_differ_for_everybody(vision: str) -> None:
    found = [cielab(colour, vision) for colour in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in combinations(found, 2)) > 25


def test_colours_are_visible_on_white() -> None:
    assert min(1.05 / (XYZ[1] @ linear(colour) + 0.05) for colour in COLOURS) > 2.6


def test_every_model_has_a_style_of_its_own() -> None:
    labels = [f"model {number}" for number in range(30)]
    styles = list(choose_styles(labels).values())
    assert len({str(style) for style in styles}) == len(labels)
    few = styles[:10]
    assert len({style["color"] for style in few}) == len({style["marker"] for style in few}) == len(few)
