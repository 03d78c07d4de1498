"""Simulation of one random multi-coil slice: anatomy, contrast, phase, coils, noise, k-space and sampling mask.

The object is drawn on a grid that is 1.5 to 2 times finer than the image, and multiplied there by the coils' fields;
only the centre of its k-space is measured. So pixels contain mixtures of tissues and edges show ringing, as in measured
data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.interpolate import CubicSpline

from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.data.simulation import anatomy, coils, contrast
from direct_hifimamba.data.simulation.anatomy import Image, Plane
from direct_hifimamba.data.simulation.heads import Head, load_head
from direct_hifimamba.data.simulation.sampling import MASKS, draw_sampling

FIELD_GRID = 28
"""Points per axis at which fields of coils are computed; cubic splines interpolate between them."""

MIN_LENGTH = 16
"""Smallest height and width of a slice, in pixels."""

MAX_ATTEMPTS = 50
"""Scenes that are drawn until one shows enough of the object."""


@dataclass
class SampleOptions:
    """Ranges from which slices are drawn; both limits are included.

    Raises
    ------
    ValueError
        If a range, a fraction or the name of a mask is invalid.

    Attributes
    ----------
    heads : tuple of Path
        NIfTI files from which slices are cut. Empty: only random tissues and phantoms.
    head_fraction : float
        Fraction of slices through heads if there are any; the others are random tissues and phantoms, 2 to 1.
    num_coils : tuple of two ints
        Smallest and largest number of coils.
    size : tuple of two ints
        Smallest and largest height and width; multiples of 4 are drawn.
    shape : tuple of two ints, optional
        Height and width of all slices, instead of `size`.
    pixel_size : tuple of two floats
        Smallest and largest side of a pixel in mm.
    snr : tuple of two floats
        Mean magnitude of the root sum of squares over the object, divided by the standard deviation of the noise in
        the real part (and, independently, in the imaginary part) of a coil image, root mean square over coils. Its
        logarithm is uniformly distributed.
    noiseless_fraction : float
        Fraction of slices without noise.
    accelerations : tuple of floats
        Accelerations, one of which is drawn for every slice.
    masks : tuple of str
        Some of `equispaced`, `random` (whole columns) and `poisson`, one of which is drawn for every slice.
    whitened_fraction : float
        Fraction of slices whose coils are whitened: linearly combined so that their noise is uncorrelated and equal.
    """

    heads: tuple[Path, ...] = ()
    head_fraction: float = 0.65
    num_coils: tuple[int, int] = (4, 32)
    size: tuple[int, int] = (96, 320)
    shape: tuple[int, int] | None = None
    pixel_size: tuple[float, float] = (0.6, 2.0)
    snr: tuple[float, float] = (10.0, 1000.0)
    noiseless_fraction: float = 0.1
    accelerations: tuple[float, ...] = (2, 3, 4, 4, 5, 6, 8, 8, 10)
    masks: tuple[str, ...] = ("equispaced", "equispaced", "random", "poisson")
    whitened_fraction: float = 0.4

    def __post_init__(self) -> None:
        for name in ("num_coils", "size", "pixel_size", "snr"):
            limits = tuple(getattr(self, name))
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(f"{name} is {limits}; expected two numbers above 0 in ascending order.")
        if self.shape is not None and (len(self.shape) != 2 or min(self.shape) < MIN_LENGTH):
            raise ValueError(f"shape is {tuple(self.shape)}; expected height and width, from {MIN_LENGTH} up.")
        for name in ("head_fraction", "noiseless_fraction", "whitened_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")
        if not self.accelerations or min(self.accelerations) <= 1:
            raise ValueError(f"accelerations are {tuple(self.accelerations)}; expected numbers above 1.")
        if not self.masks or not set(self.masks) <= set(MASKS):
            raise ValueError(f"masks are {tuple(self.masks)}; expected some of {', '.join(MASKS)}.")


@dataclass(frozen=True)
class Sample:
    """Simulated slice, with everything that is known about it.

    Attributes
    ----------
    kspace : complex64 array of shape (coil, height, width)
        Fully sampled, with noise; zero frequency in the centre, orthonormal.
    target : float32 array of shape (height, width)
        Root sum of squares of the coil images without noise.
    sensitivity_map : complex64 array of shape (coil, height, width)
        The coils' fields divided by their root sum of squares.
    mask, calibration_mask : bool arrays of shape (height, width)
        The sampling mask, and the part of it without gaps around the centre.
    noise_covariance : complex128 array of shape (coil, coil)
        Expectation of n n^H, where n is the noise of all coils in a sample of k-space. Zero without noise.
    record : dict
        What was drawn: anatomy, orientation, pixel size, number of coils, SNR, mask and so on.
    """

    kspace: NDArray[np.complex64]
    target: NDArray[np.float32]
    sensitivity_map: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    calibration_mask: NDArray[np.bool_]
    noise_covariance: NDArray[np.complex128]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def noisy_target(self) -> NDArray[np.float32]:
        """Root sum of squares of the coil images, noise included."""
        return root_sum_of_squares(self.kspace)


def draw_sample(seed: int | Sequence[int], options: SampleOptions) -> Sample:
    """Simulate a random slice, which seed and options determine bit by bit on the same machine.

    Parameters
    ----------
    seed : int or sequence of ints
        For example seed, epoch and number of the slice.
    options : SampleOptions

    Returns
    -------
    Sample

    Raises
    ------
    ValueError
        If the field of view is so large that the object is hardly visible in it.
    """
    rng = np.random.default_rng(seed)
    shape = _draw_shape(options, rng)
    scene = _draw_scene(shape, options, rng)
    attempts = 1
    while np.mean(scene.image > 0.1) < 0.04:  # the slice lies beside the object
        if attempts == MAX_ATTEMPTS:
            raise ValueError(
                f"The object covers less than 4 % of {attempts} slices of {shape[0]} x {shape[1]} pixels of "
                f"{scene.record['pixel_size']:g} mm; choose smaller pixels or a smaller image."
            )
        scene = _draw_scene(shape, options, rng)
        attempts += 1
    plane, record = scene.plane, scene.record

    fields, covariance = _draw_coils(scene, options, rng)
    fine = tuple(_interpolation(n, FIELD_GRID) for n in plane.shape)
    coarse = tuple(_interpolation(n, FIELD_GRID) for n in shape)
    coil_images = _interpolate(fields, fine)
    # The common shading of the coils is partly corrected, as by a prescan.
    shading = np.linalg.norm(coil_images, axis=0) ** -np.float32(rng.uniform(0.2, 1))
    coil_images *= shading * scene.image * np.exp(np.complex64(1j) * scene.phase)
    kspace = _crop_transform(_crop_transform(coil_images, -1, shape[1]), -2, shape[0])
    sensitivity_map = _interpolate(fields, coarse)
    sensitivity_map /= np.linalg.norm(sensitivity_map, axis=0)

    support = _draw_support(shape, rng)
    kspace *= support
    target = root_sum_of_squares(kspace)
    signal = float(target[target > 0.1 * np.quantile(target, 0.99)].mean())
    kspace /= np.float32(signal)
    target /= np.float32(signal)

    noiseless = rng.random() < options.noiseless_fraction
    snr = np.inf if noiseless else float(np.exp(rng.uniform(*np.log(options.snr))))
    covariance = covariance * (2 / snr**2)
    mixed = rng.standard_normal((2, *kspace.shape), np.float32)
    factor = np.linalg.cholesky(covariance) if not noiseless else np.zeros_like(covariance)
    noise = np.tensordot(factor.astype(np.complex64) * np.float32(np.sqrt(0.5)), mixed[0] + 1j * mixed[1], axes=1)
    kspace += noise * support

    mask, calibration_mask, sampling = draw_sampling(shape, options.masks, options.accelerations, rng)
    record |= {
        "num_coils": len(kspace),
        "snr": None if noiseless else snr,
        "acquired": float(support.mean()),
        **sampling,
    }
    return Sample(kspace, target, sensitivity_map, mask, calibration_mask, covariance, record)


def _draw_shape(options: SampleOptions, rng: np.random.Generator) -> tuple[int, int]:
    if options.shape is not None:
        height, width = options.shape
        return height, width
    low, high = options.size
    height = np.exp(rng.uniform(np.log(low), np.log(high)))
    width = height * (1 if rng.random() < 0.4 else rng.uniform(0.7, 1.3))
    height, width = (int(np.clip(round(n / 4) * 4, low, high)) for n in (height, width))
    return height, width


@dataclass(frozen=True)
class _Scene:
    """Object in the slice: signal and phase on the fine grid, and the semi-axes of the whole object in mm."""

    plane: Plane
    image: Image
    phase: Image
    semi_axes: NDArray[np.float64]
    record: dict[str, Any]


def _draw_scene(shape: tuple[int, int], options: SampleOptions, rng: np.random.Generator) -> _Scene:
    finer = rng.uniform(1.5, 2.0) if max(shape) <= 224 else 1.5
    fine = tuple(fft.next_fast_len(int(np.ceil(n * finer / 2)) * 2, real=True) for n in shape)
    head: Head | None = None
    if len(options.heads) and rng.random() < options.head_fraction:
        head = load_head(options.heads[int(rng.integers(len(options.heads)))])
    axes, orientation = anatomy.draw_axes(rng)
    if head is not None:
        scale = rng.uniform(0.85, 1.1) * rng.uniform(0.94, 1.06, 3)
        semi_axes = head.semi_axes * scale + (0 if head.has_skull else 12)
    else:
        semi_axes = rng.uniform(60, 115) * rng.uniform(0.75, 1.25, 3)
    in_plane = np.sqrt(np.square(axes[:2] * semi_axes).sum(1))
    # The field of view is larger or smaller than the object, within the limits of the pixel size.
    filling = rng.uniform(0.65, 1.0) if rng.random() < 0.8 else rng.uniform(1.0, 1.6)
    pixel_size = float(np.clip(max(2 * in_plane / shape) / filling, options.pixel_size[0], options.pixel_size[1]))
    depth = np.sqrt(np.square(axes[2] * semi_axes).sum())
    centre = axes[2] * depth * rng.uniform(-0.55, 0.75) * (head is not None)
    centre = centre + axes[0] * rng.normal(0, 4) + axes[1] * rng.normal(0, 4)
    plane = Plane((fine[0], fine[1]), pixel_size * shape[0] / fine[0], axes, centre)
    plane_semi_axes = (float(in_plane[0]), float(in_plane[1]))

    if head is not None:
        thickness = float(np.exp(rng.uniform(np.log(0.8), np.log(5))))
        image = anatomy.cut_head(head, plane, scale, thickness, rng)
        if not head.has_skull and rng.random() < 0.8:
            image = anatomy.add_skull(image, plane.pixel_size, rng)
        name = head.name
    elif rng.random() < 0.67:
        image, name = anatomy.draw_tissues(plane, plane_semi_axes, rng), "tissues"
    else:
        image, name = anatomy.draw_phantom(plane, plane_semi_axes, rng), "phantom"
    if name != "phantom":
        image = contrast.change_contrast(image, rng)
    if name != "phantom" or rng.random() < 0.3:
        image = contrast.add_detail(image, plane, rng)
    top = np.quantile(image, 0.99)
    image = np.clip(image / max(float(top), 1e-6), 0, rng.uniform(1, 2))
    phase = contrast.draw_phase(image, plane, plane_semi_axes, rng)
    record = {"anatomy": name, "orientation": orientation, "pixel_size": pixel_size}
    return _Scene(plane, image, phase, semi_axes, record)


def _draw_coils(
    scene: _Scene, options: SampleOptions, rng: np.random.Generator
) -> tuple[NDArray[np.complex64], NDArray[np.complex128]]:
    """Draw coils: their fields (coil, FIELD_GRID, FIELD_GRID), and their noise covariance with mean variance 1."""
    plane = scene.plane
    low, high = options.num_coils
    num_coils = int(np.round(np.exp(rng.uniform(np.log(low), np.log(high)))))
    vertices = coils.draw_array(num_coils, scene.semi_axes, rng)
    rows, columns = (
        np.linspace(-(n // 2) * plane.pixel_size, (n - n // 2) * plane.pixel_size, FIELD_GRID) for n in plane.shape
    )
    points = plane.centre + rows[:, None, None] * plane.axes[0] + columns[:, None] * plane.axes[1]
    fields = coils.receive_sensitivity(vertices, points.reshape(-1, 3)).reshape(num_coils, FIELD_GRID, FIELD_GRID)
    directions = rng.normal(size=(150, 3))
    directions *= rng.uniform(0, 1, (150, 1)) ** (1 / 3) / np.linalg.norm(directions, axis=1, keepdims=True)
    resistance = coils.noise_covariance(vertices, directions * scene.semi_axes, rng.uniform(0.05, 1))

    # Neighbours couple, and channels differ in gain and phase.
    apart = np.linalg.norm(vertices.mean(1)[:, None] - vertices.mean(1), axis=2)
    coupling = rng.uniform(0, 0.2) * np.exp(-apart / 60) * np.exp(2j * np.pi * rng.uniform(size=apart.shape))
    np.fill_diagonal(coupling, 1)
    gain = np.exp(rng.normal(0, rng.uniform(0, 0.35), num_coils) + 2j * np.pi * rng.uniform(size=num_coils))
    mixing = (gain[:, None] * coupling).astype(np.complex128)
    covariance = (mixing @ resistance @ mixing.conj().T).astype(np.complex128)
    if rng.random() < options.whitened_fraction:
        mixing = np.linalg.solve(np.linalg.cholesky(covariance), mixing).astype(np.complex128)
        covariance = np.eye(num_coils, dtype=np.complex128)
    scale = num_coils / np.trace(covariance).real
    return np.tensordot(mixing, fields, axes=1).astype(np.complex64), (covariance * scale).astype(np.complex128)


def _interpolation(length: int, num_knots: int) -> NDArray[np.float32]:
    """Return the matrix (length, num_knots) of cubic splines from knots across the field of view to its pixels."""
    knots = np.linspace(-(length // 2), length - length // 2, num_knots)
    return CubicSpline(knots, np.eye(num_knots))(np.arange(length) - length // 2).astype(np.float32)


def _interpolate(fields: NDArray[np.complex64], matrices: tuple[NDArray[np.float32], ...]) -> NDArray[np.complex64]:
    return (matrices[0] @ fields @ matrices[1].T).astype(np.complex64)


def _crop_transform(array: NDArray[np.complex64], axis: int, length: int) -> NDArray[np.complex64]:
    """Apply the centred, orthonormal Fourier transform along an axis, and keep its `length` lowest frequencies."""
    full = array.shape[axis]
    transformed = fft.fft(fft.ifftshift(array, axes=axis), axis=axis, norm="ortho", overwrite_x=True)
    frequencies = np.arange(length) - length // 2
    return transformed.take(frequencies % full, axis=axis) * np.float32(np.sqrt(length / full))


def _draw_support(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw which samples of the full grid (height, width) the scanner acquired: 1, or 0 where it fills in zeros."""
    rows, columns = ((np.arange(n) - n // 2) / (n / 2) for n in shape)
    extent = np.ones(2) if rng.random() < 0.75 else rng.uniform(0.7, 1, 2)
    support = (np.abs(rows)[:, None] <= extent[0]) & (np.abs(columns) <= extent[1])
    if rng.random() < 0.15:  # elliptical corners
        support &= np.hypot(rows[:, None] / extent[0], columns / extent[1]) <= rng.uniform(1.0, 1.1)
    if rng.random() < 0.12:  # an asymmetric echo or partial Fourier
        start = -rng.uniform(0.2, 0.8)
        along = rows[:, None] if rng.random() < 0.7 else columns
        support &= along * rng.choice((-1, 1)) >= start
    return support.astype(np.float32)
