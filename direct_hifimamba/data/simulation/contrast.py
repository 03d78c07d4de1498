"""Contrast and phase of objects: intensity curves, bias, texture, vessels and lesions."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from direct_hifimamba.data.simulation.anatomy import Image, Plane, random_field


def draw_curve(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a piecewise linear intensity curve that maps 0 (air) to 0; return its knots and its values there.

    One third of the curves increases, one third decreases above air, and one third is arbitrary.
    """
    first = rng.uniform(0.06, 0.18)
    inner = np.sort(rng.uniform(first, 1, int(rng.integers(2, 7))))
    knots = np.concatenate([[0, first], inner, [1.3]])
    kind = rng.integers(3)
    values = rng.uniform(0.02, 1, len(knots) - 1) ** rng.uniform(0.4, 1)
    if kind == 0:
        values = np.sort(values)
        if rng.random() < 0.5:
            values = values * 0.3 + 0.7 * knots[1:]
    elif kind == 1:
        values = np.sort(values)[::-1]
    return knots, np.concatenate([[0], values])


def change_contrast(image: Image, rng: np.random.Generator) -> Image:
    """Map intensities by a random curve, sometimes by two curves with a smooth transition in space."""
    if rng.random() < 0.2:
        return image
    mapped = np.interp(image, *draw_curve(rng)).astype(np.float32)
    if rng.random() < 0.4:
        other = np.interp(image, *draw_curve(rng)).astype(np.float32)
        mapped += (other - mapped) / (1 + np.exp(-2 * random_field(image.shape, 3, rng)))
    return mapped


def add_detail(image: Image, plane: Plane, rng: np.random.Generator) -> Image:
    """Add details that templates lack: texture of tissues, vessels, lesions, and a smooth bias field."""
    if rng.random() < 0.8:
        texture = random_field(plane.shape, rng.uniform(0.3, 1.8), rng)
        image = image * np.maximum(0, 1 + np.float32(rng.uniform(0, 0.2)) * texture)
    if rng.random() < 0.35:
        image = _add_vessels(image, plane, rng)
    for _ in range(int(rng.integers(0, 5)) if rng.random() < 0.4 else 0):
        image = _add_lesion(image, plane, rng)
    if rng.random() < 0.4:
        image = image * np.exp(np.float32(rng.uniform(0, 0.4)) * random_field(plane.shape, 4, rng))
    if rng.random() < 0.15:  # sharpened, like by filters of some scanners
        image = np.maximum(0, image + rng.uniform(0.2, 1) * (image - ndimage.gaussian_filter(image, 2.0)))
    return image


def _add_vessels(image: Image, plane: Plane, rng: np.random.Generator) -> Image:
    number, length = int(rng.integers(3, 25)), 160
    heading = rng.uniform(0, 2 * np.pi, (number, 1)) + np.cumsum(rng.normal(0, 0.12, (number, length)), axis=1)
    start = rng.uniform(0.15, 0.85, (2, number, 1)) * np.array(plane.shape)[:, None, None]
    path = (start + np.cumsum([np.sin(heading), np.cos(heading)], axis=2)).astype(int)
    path = path[:, :, : int(rng.integers(10, length))]
    path = path.reshape(2, -1)
    path = path[:, (path >= 0).all(0) & (path[0] < plane.shape[0]) & (path[1] < plane.shape[1])]
    drawing = np.zeros(plane.shape, np.float32)
    drawing[tuple(path)] = 1
    width = rng.uniform(0.4, 1.1)
    drawing = np.minimum(1, rng.uniform(0.5, 2) * width * ndimage.gaussian_filter(drawing, width, truncate=3))
    level = np.float32(rng.choice((0.02, rng.uniform(0.3, 1.2))))
    return image + drawing * (image > 0.05) * (level - image)


def _add_lesion(image: Image, plane: Plane, rng: np.random.Generator) -> Image:
    rows, columns = plane.coordinates()
    extent = min(plane.shape) * plane.pixel_size
    y, x = rows - rng.uniform(-0.3, 0.3) * extent, columns - rng.uniform(-0.3, 0.3) * extent
    radius = rng.uniform(1.5, 14)
    direction = (x + 1j * y) / (np.hypot(y, x) + 1e-9)
    weights = [rng.normal(0, 0.2 / n) * np.exp(1j * rng.uniform(0, 6)) for n in range(4, 0, -1)]
    wavy = 1 + np.polyval([*weights, 0], direction).real
    distance = np.hypot(y * rng.uniform(0.7, 1.4), x) / wavy - radius
    inside = 1 / (1 + np.exp(np.clip(distance * rng.uniform(1, 5), -40, 40)))
    change = inside.astype(np.float32) * (image > 0.05) * np.float32(rng.uniform(-0.8, 0.8))
    return image + change * np.sqrt(np.maximum(image, 0))


def draw_phase(image: Image, plane: Plane, semi_axes: tuple[float, float], rng: np.random.Generator) -> Image:
    """Draw the phase of the object: a smooth part, local dipole fields of cavities, and an offset of bright tissue.

    One slice in eight has phase zero. The smooth part is a polynomial of third degree of up to 40 rad.

    Returns
    -------
    float32 array of shape (height, width)
        Phase in radians.
    """
    if rng.random() < 0.125:
        return np.zeros(plane.shape, np.float32)
    rows, columns = plane.coordinates()
    y, x = rows / semi_axes[0], columns / semi_axes[1]
    monomials = np.stack(np.broadcast_arrays(y, x, y * x, y * y, x * x, y**3, x**3, y * y * x, y * x * x))
    weights = rng.normal(size=len(monomials)) * np.repeat((1, 0.5, 0.25), (2, 3, 4))
    bound = np.exp(rng.uniform(np.log(0.5), np.log(40)))
    phase = rng.uniform(-np.pi, np.pi) + bound * np.tensordot(weights / np.abs(weights).sum(), monomials, axes=1)
    for _ in range(int(rng.integers(0, 5))):  # fields of dipoles
        v, u = y - rng.uniform(-1, 1), x - rng.uniform(-1, 1)
        size = rng.uniform(0.04, 0.25)
        axis = rng.uniform(0, 2 * np.pi)
        squared = v * v + u * u
        along = np.cos(axis) * v + np.sin(axis) * u
        phase += rng.normal(0, 2.5) * size**2 * (2 * along**2 - squared) / (squared + size**2) ** 2
    if rng.random() < 0.3:
        phase += rng.normal(0, 0.4) * random_field(plane.shape, rng.uniform(2, 3), rng, cutoff=0.1)
    if rng.random() < 0.3:
        phase += rng.uniform(-1.5, 1.5) * (image > 0.75 * image.max())
    return phase.astype(np.float32)
