"""Arrays of receive coils: loops of wire around an object, their fields by the Biot-Savart law, and their noise.

Lengths are in mm and the patient's axes are x (left to right), y (posterior to anterior) and z (inferior to superior,
along the main field). Fields are in units of mu_0 / (4 pi) per ampere and mm; only their ratios are used.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Layout = Literal["ring", "rows", "helmet", "planes"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

WIRE_RADIUS = 5.0
"""Radius of wires in mm, which limits the field near them."""

NUM_VERTICES = 12
"""Corners of the polygon that represents a loop."""


def magnetic_field(
    vertices: NDArray[np.float64], points: NDArray[np.float64], wire: float = 0.0
) -> NDArray[np.float64]:
    """Return the magnetic field of closed polygons of wire, each with unit current.

    Parameters
    ----------
    vertices : float64 array of shape (coil, vertex, 3)
        Corners in mm; the last one is connected to the first one.
    points : float64 array of shape (point, 3)
        Positions in mm at which the field is computed.
    wire : float
        Radius of the wire in mm, which limits the field near it.

    Returns
    -------
    float64 array of shape (coil, 3, point)

    Notes
    -----
    The field of a straight segment is equation 8 of Hanson and Hirshman, Physics of Plasmas 9 (2002), 4410.
    """
    start = points.T - vertices[..., None]  # (coil, vertex, 3, point)
    end = np.roll(start, -1, axis=1)
    r_start, r_end = (np.sqrt(np.square(offset).sum(2) + wire**2) for offset in (start, end))
    product = r_start * r_end
    weight = (r_start + r_end) / (product * (product + (start * end).sum(2)))
    return (weight[:, :, None] * np.cross(start, end, axis=2)).sum(1)


def vector_potential(vertices: NDArray[np.float64], points: NDArray[np.float64], wire: float) -> NDArray[np.float64]:
    """Return the vector potential of closed polygons of wire; arguments and shape as in :func:`magnetic_field`.

    Apart from surface charges, the electric field of a coil in a homogeneous object is proportional to it.
    """
    edge = np.roll(vertices, -1, axis=1) - vertices
    length = np.linalg.norm(edge, axis=2)[..., None]
    r_start = np.sqrt(np.square(points.T - vertices[..., None]).sum(2) + wire**2)
    total = r_start + np.roll(r_start, -1, axis=1)
    return np.einsum("cvp,cvx->cxp", np.log((total + length) / (total - length)), edge / length)


def receive_sensitivity(vertices: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return the receive sensitivities B_x - i B_y, shape (coil, point); arguments as in :func:`magnetic_field`."""
    field = magnetic_field(vertices, points, WIRE_RADIUS)
    return field[:, 0] - 1j * field[:, 1]


def noise_covariance(
    vertices: NDArray[np.float64], points: NDArray[np.float64], coil_losses: float
) -> NDArray[np.float64]:
    """Return the covariance of the coils' thermal noise, with a mean variance of 1.

    Noise of the object is correlated between coils whose electric fields overlap; noise of conductors and amplifiers is
    uncorrelated (Roemer et al., Magnetic Resonance in Medicine 16 (1990), 192).

    Parameters
    ----------
    vertices : float64 array of shape (coil, vertex, 3)
    points : float64 array of shape (point, 3)
        Positions in mm, uniformly distributed in the object.
    coil_losses : float
        Ratio of the noise variance of conductors and amplifiers to the mean variance from the object; above 0.

    Returns
    -------
    float64 array of shape (coil, coil), positive definite
    """
    potential = vector_potential(vertices, points, WIRE_RADIUS).reshape(len(vertices), -1)
    resistance = potential @ potential.T
    resistance += coil_losses * np.trace(resistance) / len(vertices) * np.eye(len(vertices))
    return resistance * len(vertices) / np.trace(resistance)


def draw_array(
    num_coils: int,
    semi_axes: NDArray[np.float64],
    rng: np.random.Generator,
    layout: Layout | None = None,
) -> NDArray[np.float64]:
    """Draw an array of loops around an ellipsoid with its centre at the origin.

    Parameters
    ----------
    num_coils : int
    semi_axes : float64 array of shape (3,)
        Semi-axes of the ellipsoid in mm.
    rng : numpy.random.Generator
    layout : str, optional
        `ring` (one row around z), `rows` (two or three), `helmet` (on the top and the sides) or `planes` (anterior and
        posterior). Default: one of them at random.

    Returns
    -------
    float64 array of shape (coil, vertex, 3)
        Corners of the loops in mm.
    """
    layout = layout or LAYOUTS[rng.choice(len(LAYOUTS), p=(0.25, 0.3, 0.35, 0.1))]
    shell = semi_axes + rng.uniform(18, 65) * np.array([1, 1, 0.7])
    directions = _directions(num_coils, layout, rng)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if layout == "planes":
        directions[:, 1] = np.sign(directions[:, 1]) * rng.uniform(0.95, 1.1)
    centres = shell * directions
    is_cylinder = layout in ("ring", "rows")
    if is_cylinder:
        centres[:, :2] /= np.linalg.norm(directions[:, :2], axis=1, keepdims=True)
    centres += rng.normal(0, 4, centres.shape)

    normals = centres / np.square(shell)
    if is_cylinder:
        normals[:, 2] = 0
    if layout == "planes":
        normals[:] = np.sign(centres[:, 1:2]) * [0.0, 1.0, 0.0]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals += rng.normal(0, 0.08, normals.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    tangents = np.cross(normals, [0.1, 0.2, 1.0])
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)

    nearest = np.linalg.norm(centres[:, None] - centres, axis=2)
    np.fill_diagonal(nearest, np.inf)
    spacing = np.clip(np.median(nearest.min(1)) if num_coils > 1 else 120, 40, 180)
    radius = spacing * rng.uniform(0.45, 0.7) * rng.uniform(0.85, 1.15, (num_coils, 1))
    angle = 2 * np.pi * np.arange(NUM_VERTICES) / NUM_VERTICES + rng.uniform(0, 2 * np.pi) * (layout == "helmet")
    squareness = rng.uniform(0, 1)  # 0: a circle, 1: nearly a rectangle
    outline = 1 / (np.abs(np.cos(angle)) ** 6 + np.abs(np.sin(angle)) ** 6) ** (squareness / 6)
    aspect = rng.uniform(0.75, 1.35, (num_coils, 1))
    along = (radius * aspect * outline * np.cos(angle))[..., None] * tangents[:, None]
    across = (radius / aspect * outline * np.sin(angle))[..., None] * np.cross(normals, tangents)[:, None]
    return centres[:, None] + along + across


def _directions(num_coils: int, layout: Layout, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the directions of the loops' centres from the origin, shape (coil, 3), not normalised."""
    turn = rng.uniform(0, 2 * np.pi)
    if layout == "helmet":  # a spiral of constant density on the sphere, from the top to the chin
        height = np.linspace(1 - 1 / num_coils, rng.uniform(-0.7, -0.2), num_coils)
        turns = turn + np.pi * (3 - np.sqrt(5)) * np.arange(num_coils)
        width = np.sqrt(1 - height**2)
        return np.stack([width * np.cos(turns), width * np.sin(turns), height], axis=1)
    if layout == "planes":
        side = np.where(np.arange(num_coils) % 2, 1.0, -1.0)
        columns = max(1, round(np.sqrt(num_coils / 2)))
        rank = np.arange(num_coils) // 2
        rows = rank.max() // columns + 1
        across = (rank % columns - (columns - 1) / 2) / columns
        along = (rank // columns - (rows - 1) / 2) / rows
        return np.stack([1.6 * across + 1e-3, side, 1.6 * along], axis=1)
    num_rows = 1 if layout == "ring" else min(int(rng.integers(2, 4)), num_coils)
    row = np.arange(num_coils) % num_rows
    azimuth = turn + 2 * np.pi * (np.arange(num_coils) // num_rows + row / 2) * num_rows / num_coils
    level = (row - (num_rows - 1) / 2) * rng.uniform(0.6, 1.1) + rng.uniform(-0.25, 0.25)
    return np.stack([np.cos(azimuth), np.sin(azimuth), level], axis=1)
