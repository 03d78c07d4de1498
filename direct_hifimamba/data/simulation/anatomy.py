"""Objects to image: slices through heads, random tissues and phantoms, one value from 0 (air) to 1 per pixel."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from direct_hifimamba.data.simulation.heads import Head

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Plane:
    """Position of a slice in the patient, and its grid of pixels.

    Attributes
    ----------
    shape : tuple of ints
        Height and width of the grid.
    pixel_size : float
        Side of a pixel in mm.
    axes : float64 array of shape (3, 3)
        Unit vectors in the patient's axes: direction of increasing row, of increasing column, and normal of the slice.
    centre : float64 array of shape (3,)
        Position of pixel (height // 2, width // 2) in the patient, in mm.
    """

    shape: tuple[int, int]
    pixel_size: float
    axes: NDArray[np.float64]
    centre: NDArray[np.float64]

    def coordinates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the distances of rows and columns from the centre in mm, shapes (height, 1) and (width,)."""
        rows, columns = (np.arange(-(n // 2), n - n // 2, dtype=float) * self.pixel_size for n in self.shape)
        return rows[:, None], columns


ORIENTATIONS = {
    "axial": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "coronal": ((0, 0, -1), (1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
}


def draw_axes(rng: np.random.Generator) -> tuple[NDArray[np.float64], str]:
    """Draw the axes of a slice, see :class:`Plane`: an anatomical plane, tilted, sometimes mirrored or transposed.

    Returns
    -------
    axes : float64 array of shape (3, 3)
    orientation : str
        Of :data:`ORIENTATIONS`, or `oblique` for a large tilt.
    """
    name = list(ORIENTATIONS)[rng.integers(3)]
    axes = np.array(ORIENTATIONS[name], float)
    tilt = rng.choice((0.0, 0.12, 0.5), p=(0.3, 0.5, 0.2))
    vector = rng.normal(0, tilt, 3)
    axes = axes @ _rotation(vector)
    if rng.random() < 0.25:
        axes[[0, 1]] = axes[[1, 0]]
    axes[:2] *= rng.choice((-1, 1), (2, 1), p=(0.3, 0.7))
    return axes, name if tilt < 0.3 else "oblique"


def _rotation(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation matrix of a rotation vector in radians (Rodrigues' formula)."""
    angle = np.linalg.norm(vector)
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def cut_head(head: Head, plane: Plane, scale: NDArray[np.float64], thickness: float, rng: np.random.Generator) -> Image:
    """Return a slice through a head, which is scaled and smoothly deformed.

    Parameters
    ----------
    head : Head
    plane : Plane
    scale : float64 array of shape (3,)
        Factor on the head's size along each axis of the patient.
    thickness : float
        Thickness of the slice in mm; the result is the mean of thin slices.
    rng : numpy.random.Generator

    Returns
    -------
    float32 array of shape (height, width)
    """
    rows, columns = plane.coordinates()
    # Displacement by waves whose gradients add up to less than 1, so that the deformation is invertible.
    num_waves = 4
    wave = rng.normal(size=(num_waves, 3))
    wave *= 2 * np.pi / rng.uniform(50, 160, (num_waves, 1)) / np.linalg.norm(wave, axis=1, keepdims=True)
    gradient = rng.uniform(0, 0.16, num_waves)
    push = rng.normal(size=(num_waves, 3))
    push *= (gradient / np.linalg.norm(wave, axis=1) / np.linalg.norm(push, axis=1))[:, None]
    phase = rng.uniform(0, 2 * np.pi, num_waves)

    steps = max(1, round(thickness / 1.2))
    total = np.zeros(plane.shape, np.float32)
    for offset in (np.arange(steps) - (steps - 1) / 2) * thickness / steps:
        origin = plane.centre + offset * plane.axes[2]
        places = [origin[i] + rows * plane.axes[0, i] + columns * plane.axes[1, i] for i in range(3)]
        shift = [np.float64(0.0)] * 3
        for k, p, start in zip(wave, push, phase, strict=True):
            along_rows = np.exp(1j * rows * (k @ plane.axes[0]) + 1j * (start + k @ origin))
            swing = (along_rows * np.exp(1j * columns * (k @ plane.axes[1]))).imag
            shift = [s + amount * swing for s, amount in zip(shift, p, strict=True)]
        voxels = [
            (place + s) / factor / spacing + middle
            for place, s, factor, spacing, middle in zip(places, shift, scale, head.spacing, head.centre, strict=True)
        ]
        total += ndimage.map_coordinates(head.voxels, voxels, np.float32, order=1)
    return total / np.float32(steps * head.maximum)


def add_skull(image: Image, pixel_size: float, rng: np.random.Generator) -> Image:
    """Add fluid, a dark skull and a bright scalp around a brain; `pixel_size` is in mm."""
    brain = ndimage.binary_closing(image > 0.12, iterations=2)
    distance = pixel_size * ndimage.distance_transform_edt(~brain).astype(np.float32)
    roughness = 1 + 0.5 * random_field(image.shape, 2.5, rng)
    edges = np.cumsum(rng.uniform((0.5, 2, 0.3, 2), (2.5, 7, 1, 8)))
    levels = np.array([0.15, 0.03, rng.uniform(0, 0.3), rng.uniform(0.5, 1), 0], np.float32)
    layers = levels[np.searchsorted(edges, distance / np.maximum(roughness, 0.3))]
    texture = 1 + 0.2 * random_field(image.shape, 1.5, rng)
    return np.where(distance > 0, np.maximum(image, layers * texture), image)


def random_field(shape: tuple[int, ...], exponent: float, rng: np.random.Generator, cutoff: float = 0.5) -> Image:
    """Return a Gaussian random field with mean 0 and variance 1 and the amplitude frequency ** -exponent.

    Parameters
    ----------
    shape : tuple of ints
    exponent : float
        1 gives a rough texture, 2 clouds, 3 or more a smooth field.
    rng : numpy.random.Generator
    cutoff : float
        Highest frequency, in cycles per pixel.

    Returns
    -------
    float32 array of that shape
    """
    height, width = shape
    rows, columns = (np.square(axis).astype(np.float32) for axis in (fft.fftfreq(height), fft.rfftfreq(width)))
    squared = rows[:, None] + columns
    squared[0, 0] = 1
    amplitude = squared ** np.float32(-exponent / 2) * (squared <= cutoff**2)
    amplitude[0, 0] = 0
    noise = rng.standard_normal((2, *squared.shape), np.float32)
    field = fft.irfft2(amplitude * (noise[0] + 1j * noise[1]), shape).astype(np.float32)
    return field / max(float(field.std()), 1e-12)


def draw_outline(plane: Plane, semi_axes: tuple[float, float], rng: np.random.Generator) -> Image:
    """Draw a body with a wavy outline: 1 inside, 0 outside, with an edge of one pixel; `semi_axes` are in mm."""
    rows, columns = plane.coordinates()
    y, x = rows / semi_axes[0], columns / semi_axes[1]
    angle = np.arctan2(y, x)
    radius = np.ones_like(angle)
    for order in range(2, 7):
        radius += rng.normal(0, 0.12 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    power = rng.uniform(1.7, 3.5)
    distance = (radius - (np.abs(y) ** power + np.abs(x) ** power) ** (1 / power)) * min(semi_axes)
    return np.clip(distance / plane.pixel_size + 0.5, 0, 1).astype(np.float32)


def draw_tissues(plane: Plane, semi_axes: tuple[float, float], rng: np.random.Generator) -> Image:
    """Draw a body of random tissues: layers, lobes and organs with sharp borders, fat, and texture; sizes in mm."""
    body = draw_outline(plane, semi_axes, rng)
    smooth = random_field(plane.shape, rng.uniform(2.0, 3.2), rng)
    kind = rng.integers(3)
    if kind == 0:  # layers between contour lines, as a folded cortex has them
        smooth = np.sin(rng.uniform(3, 14) * smooth + rng.uniform(0, 6)).astype(np.float32)
    elif kind == 1:  # network of septa
        smooth = np.abs(smooth) - np.abs(random_field(plane.shape, rng.uniform(1.8, 2.5), rng))
    levels = rng.uniform(0.1, 1, int(rng.integers(2, 7))).astype(np.float32)
    limits = np.sort(rng.normal(0, 0.9, len(levels) - 1))
    softness = rng.uniform(0.02, 0.2)
    image = np.full(plane.shape, levels[0], np.float32)
    for limit, step in zip(limits, np.diff(levels), strict=True):
        image += step * np.clip((smooth - np.float32(limit)) / np.float32(softness) + 0.5, 0, 1)
    for _ in range(int(rng.integers(0, 12))):
        _paint_ellipse(image, plane, semi_axes, rng)
    image *= 1 + np.float32(rng.uniform(0, 0.25)) * random_field(plane.shape, rng.uniform(0.6, 1.8), rng)
    if rng.random() < 0.7:  # fat below the skin, then a dark layer
        distance = plane.pixel_size * ndimage.distance_transform_edt(body > 0.5).astype(np.float32)
        fat, gap = rng.uniform(1, 12), rng.uniform(0, 5)
        image = np.where(distance < fat + gap, np.float32(rng.uniform(0, 0.2)), image)
        image = np.where(distance < fat, np.float32(rng.uniform(0.4, 1)), image)
    return np.clip(image, 0.02, 1.3) * body


def _paint_ellipse(image: Image, plane: Plane, semi_axes: tuple[float, float], rng: np.random.Generator) -> None:
    rows, columns = plane.coordinates()
    scale = min(semi_axes)
    radius = scale * rng.uniform(0.02, 0.35) * rng.uniform(0.4, 1, 2)
    y, x = rows - rng.uniform(-0.7, 0.7) * semi_axes[0], columns - rng.uniform(-0.7, 0.7) * semi_axes[1]
    angle = rng.uniform(0, np.pi)
    distance = 1 - np.hypot(
        (np.cos(angle) * y + np.sin(angle) * x) / radius[0], (np.cos(angle) * x - np.sin(angle) * y) / radius[1]
    )
    inside = np.clip(distance * radius.min() / plane.pixel_size + 0.5, 0, 1).astype(np.float32)
    image += inside * (np.float32(rng.uniform(0.05, 1)) - image)


def draw_phantom(plane: Plane, semi_axes: tuple[float, float], rng: np.random.Generator) -> Image:
    """Draw a resolution phantom: a container with rods, grids of holes, bars, wedges and thin walls; sizes in mm."""
    rows, columns = plane.coordinates()
    round_vessel = rng.random() < 0.7
    scale = min(semi_axes)
    norm = (
        np.hypot(rows / semi_axes[0], columns / semi_axes[1])
        if round_vessel
        else np.maximum(np.abs(rows) / semi_axes[0], np.abs(columns) / semi_axes[1])
    )

    def edge(distance: NDArray[np.float64]) -> Image:
        return np.clip(distance / plane.pixel_size + 0.5, 0, 1).astype(np.float32)

    image = edge((1 - norm) * scale) * np.float32(rng.uniform(0.5, 1))
    vessel = image > 0
    if rng.random() < 0.4:
        wall = rng.uniform(0.01, 0.05)
        image *= 1 - edge((wall / 2 - np.abs(norm - rng.uniform(0.75, 0.95))) * scale)
    for _ in range(int(rng.integers(0, 6))):
        _paint_ellipse(image, plane, (0.8 * semi_axes[0], 0.8 * semi_axes[1]), rng)
    for _ in range(int(rng.integers(1, 7))):
        angle = rng.uniform(0, np.pi) if rng.random() < 0.5 else 0.0
        y0, x0 = rng.uniform(-0.6, 0.6, 2) * semi_axes
        y, x = rows - y0, columns - x0
        y, x = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
        half = scale * rng.uniform(0.1, 0.3, 2)
        period = max(rng.uniform(1.2, 12), 1.5 * plane.pixel_size)
        window = edge(np.minimum(half[0] - np.abs(y), half[1] - np.abs(x)))
        duty = rng.uniform(0.25, 0.6)

        kind = rng.integers(4)
        # Distances from the nearest multiple of the period.
        across, along = (np.abs((distance + period / 2) % period - period / 2) for distance in (y, x))
        half_width = duty * period / 2
        if kind == 0:  # bars
            pattern = edge(half_width - across)
        elif kind == 1:  # holes
            pattern = edge(half_width - np.hypot(across, along))
        elif kind == 2:  # grid of thin walls
            pattern = np.maximum(edge((half_width - across) * 0.5), edge((half_width - along) * 0.5))
        else:  # wedge
            pattern = edge(0.25 * (x + half[1]) - np.abs(y))
        value = np.float32(rng.choice((0.0, rng.uniform(0, 1))))
        image += vessel * window * pattern * (value - image)
    return image
