"""Images of slices and their errors, compressed without loss."""

import base64
import io

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import sobel, uniform_filter

WHITE_QUANTILE = 0.999
"""Quantile of the magnitudes of the target that is shown white."""

ZOOM = 3
"""Magnification of the window."""

type Window = tuple[slice, slice]
"""Rows and columns of a part of a slice."""


def white_level(target: NDArray[np.float32]) -> float:
    """Return the magnitude that is shown white in a slice, and to which its errors are relative."""
    return max(float(np.quantile(target, WHITE_QUANTILE)), float(np.finfo(np.float32).tiny))


def relative_error(target: NDArray[np.float32], image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the magnitude of the error, in units of the target's white."""
    return (np.abs(image - target) / white_level(target)).astype(np.float32)


def choose_window(target: NDArray[np.float32]) -> Window:
    """Return the window of the target with the most edges; errors play no part in the choice."""
    height, width = (max(size // ZOOM, 1) for size in target.shape)
    edges = uniform_filter(np.hypot(sobel(target, 0), sobel(target, 1)), (height, width), mode="constant")
    row, column = np.unravel_index(edges.argmax(), edges.shape)
    top = int(np.clip(row - height // 2, 0, target.shape[0] - height))
    left = int(np.clip(column - width // 2, 0, target.shape[1] - width))
    return slice(top, top + height), slice(left, left + width)


def draw(values: NDArray[np.float32], window: Window, colours: str = "gray") -> str:
    """Return a picture as a lossless WebP file in a data URI: above all values, below the window magnified.

    Parameters
    ----------
    values : float32 array of shape (height, width)
        From 0 to 1; what is beyond is clipped.
    window : Window
        It is framed above.
    colours : str
        Colour map of matplotlib.
    """
    rows, columns = window
    framed = values.copy()
    framed[[rows.start, rows.stop - 1], columns] = framed[rows, [columns.start, columns.stop - 1]] = 1
    magnified = values[window].repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)[:, : values.shape[1]]
    padded = np.pad(magnified, ((0, 0), (0, values.shape[1] - magnified.shape[1])))
    pixels = mpl.colormaps[colours](np.concatenate([framed, padded]), bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="webp", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
