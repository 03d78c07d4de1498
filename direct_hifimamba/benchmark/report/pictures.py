"""Images of slices and their errors, compressed without loss."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import sobel, uniform_filter

WHITE_QUANTILE = 0.999
"""Quantile of the magnitudes of the target that is shown white."""

ERROR_QUANTILE = 0.98
ERROR_COLOURS = tuple(mpl.colormaps["inferno"](np.linspace(0, 1, 17))[:, :3].tolist())
"""Colours of errors from 0 to the limit, in equal steps."""

ZOOM = 3
"""Magnification of the window."""


@dataclass(frozen=True)
class Window:
    """Part of a slice, in pixels."""

    left: int
    top: int
    width: int
    height: int


def encode(pixels: NDArray[np.uint8]) -> str:
    """Return an array of shape (height, width) as a lossless WebP file in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="webp", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def white_level(target: NDArray[np.float32]) -> float:
    """Return the magnitude that is shown white in a slice, and to which its errors are relative."""
    return max(float(np.quantile(target, WHITE_QUANTILE)), float(np.finfo(np.float32).tiny))


def relative_error(target: NDArray[np.float32], image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the magnitude of the error, in units of the target's white."""
    return (np.abs(image - target) / white_level(target)).astype(np.float32)


def draw_target(target: NDArray[np.float32]) -> str:
    """Return a picture of the target as :func:`draw_image` shows a reconstruction, without errors."""
    return encode(_to_grey(target / white_level(target)))


def draw_image(target: NDArray[np.float32], image: NDArray[np.float32], error_limit: float) -> str:
    """Return a picture of an image and, right of it, its error from 0 (black) to `error_limit` (white)."""
    error = relative_error(target, image) / error_limit
    return encode(_to_grey(np.concatenate([image / white_level(target), error], axis=1)))


def _to_grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def choose_window(target: NDArray[np.float32]) -> Window:
    """Return the window of the target with the most edges; errors play no part in the choice."""
    height, width = (max(size // ZOOM, 1) for size in target.shape)
    edges = uniform_filter(np.hypot(sobel(target, 0), sobel(target, 1)), (height, width), mode="constant")
    # The filter's window around an index begins half its size before it.
    inside = edges[height // 2 : height // 2 + target.shape[0] - height + 1]
    inside = inside[:, width // 2 : width // 2 + target.shape[1] - width + 1]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return Window(int(left), int(top), width, height)


def error_limit(errors: Sequence[NDArray[np.float32]]) -> float:
    """Return the error that is shown white: a high quantile of all errors, rounded up so that quarters are plain."""
    quantile = max(float(np.quantile(np.concatenate([error.ravel() for error in errors]), ERROR_QUANTILE)), 1e-6)
    power = 10.0 ** np.floor(np.log10(quantile))
    return float(next(step for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step * power >= quantile) * power)
