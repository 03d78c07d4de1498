"""Coil sensitivities of one slice from its calibration region by ESPIRiT [1]_.

All small windows (kernels) of the calibration region, over all coils, lie in a subspace, which a singular value
decomposition finds. The projection of all windows of k-space onto it, added up again, is a multiplication by one
coil x coil matrix G per pixel of the image. The sensitivities are the eigenvector of G for the largest eigenvalue,
which is 1 without noise.

G is a trigonometric polynomial in space, whose degree is lower than the size of the kernel. So the values on a grid of
2 * kernel - 1 points per axis determine G everywhere. Eigenvectors are computed on a slightly finer grid, interpolated,
and refined by two steps of the power iteration per pixel. This is about ten times faster than an eigendecomposition in
every pixel.

References
----------
.. [1] Uecker et al. ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI: where SENSE meets GRAPPA. Magn
   Reson Med 71(3):990-1001, 2014.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from direct_hifimamba.data.center import center_block

MAX_CALIBRATION = 24
"""Largest height and width of the calibration region that is used, as in BART; a larger one costs time for little."""

MAX_KERNEL = 6
"""Largest default size of the kernel, as in BART."""

COARSE_GRID = 3
"""Ratio of the points per axis at which eigenvectors are computed to those that determine G."""

POWER_ITERATIONS = 2
"""Steps that refine interpolated eigenvectors."""

THRESHOLD = 0.001
"""Singular vectors of the windows belong to the signal if their squared singular value is above this fraction of the
largest one."""

_CHUNK = 2**17
"""Elements of G that are computed at a time, so few that they fit the cache of a CPU."""


def espirit(
    kspace: NDArray[Any], mask: NDArray[np.bool_], kernel_size: int | None = None, crop: float = 0.0
) -> NDArray[np.complex64]:
    """Estimate the coil sensitivities of one slice.

    Parameters
    ----------
    kspace : complex array of shape (coil, height, width)
        With the zero frequency at index length // 2. Samples outside the calibration region are not used.
    mask : bool array of shape (height, width) or (width,)
        Sampling mask. The calibration region is the block around the centre without gaps, at most `MAX_CALIBRATION`
        samples per axis.
    kernel_size : int, optional
        Height and width of the windows, at most those of the calibration region. Default: half of the region, at most
        `MAX_KERNEL`, so that even a narrow region has several windows. (BART uses 6; with fewer than 12 sampled
        columns, the smaller kernel gives clearly better images.)
    crop : float
        Sensitivities are zero where the eigenvalue, from 0 to 1, is below this value. Default: nowhere.

    Returns
    -------
    complex64 array of shape (coil, height, width)
        The squared magnitudes add up to 1 over the coils (0 where cropped). ESPIRiT does not determine the phase in a
        pixel. Here it is such that the virtual coil given by the first principal component of the calibration region
        has a real and positive sensitivity, so that the image has the phase of that coil.

    Raises
    ------
    ValueError
        If an argument is out of range, or if the calibration region is zero or not finite.
    """
    if not 0 <= crop <= 1:
        raise ValueError(f"crop is {crop}; expected an eigenvalue from 0 to 1.")
    block, operator = _calibrate(kspace, mask, kernel_size)
    height, width = kspace.shape[-2:]
    coarse = [min(size, COARSE_GRID * points) for size, points in zip((height, width), operator.shape[:2], strict=True)]
    maps = torch.cat([torch.linalg.eigh(rows)[1][..., -1] for _, rows in _evaluate(operator, *coarse)])
    maps = _upsample(_upsample(maps, height, 0), width, 1)
    eigenvalues = maps.new_empty(height, width, 1, dtype=torch.float32)
    for part, rows in _evaluate(operator, height, width):
        vectors = maps[part][:, :, None]
        for _ in range(POWER_ITERATIONS):
            vectors = vectors @ rows.mT  # for many coils several times as fast as rows @ vectors
            norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
            vectors = vectors / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        maps[part], eigenvalues[part] = vectors[:, :, 0], norm[:, :, 0]
    maps = fix_phase(maps, block) * (eigenvalues >= crop)
    return np.ascontiguousarray(maps.permute(2, 0, 1).numpy())


def check_coils(kspace: NDArray[Any]) -> None:
    """Raise a ValueError unless k-space is complex, of shape (coil, height, width), and has a coil."""
    if kspace.ndim != 3 or not len(kspace) or not np.iscomplexobj(kspace):
        raise ValueError(
            f"k-space has the shape {kspace.shape} and type {kspace.dtype}; expected complex numbers of shape (coil, "
            "height, width) and at least one coil."
        )


def _calibrate(
    kspace: NDArray[Any], mask: NDArray[np.bool_], kernel_size: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the calibration region (coil, height, width) and the samples of G, see :func:`_pixel_operator`."""
    check_coils(kspace)
    rows, columns = calibration_region(kspace.shape[1:], mask)
    block = torch.from_numpy(kspace[:, rows, columns].astype(np.complex64))
    largest = block.abs().max()
    if not largest.isfinite() or largest == 0:
        raise ValueError(
            f"The calibration region of {block.shape[1]} x {block.shape[2]} samples has the largest magnitude "
            f"{largest:g}; expected finite samples that are not all zero. Leave blank slices out."
        )
    block = block / largest
    sizes = block.shape[1:]
    kernel = [min(MAX_KERNEL, (size + 1) // 2) for size in sizes] if kernel_size is None else [kernel_size] * 2
    if not all(1 <= width <= size for width, size in zip(kernel, sizes, strict=True)):
        raise ValueError(
            f"The kernel has the size {kernel[0]} x {kernel[1]}; expected from 1 to {sizes[0]} x {sizes[1]}, the size "
            "of the calibration region (height x width)."
        )
    return block, _pixel_operator(_signal_kernels(block, kernel))


def calibration_region(shape: tuple[int, ...], mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return rows and columns of k-space that :func:`espirit` uses, at most `MAX_CALIBRATION` around the centre.

    Parameters
    ----------
    shape : tuple of two ints
        Height and width of k-space.
    mask : bool array of shape (height, width) or (width,)

    Returns
    -------
    tuple of two slices

    Raises
    ------
    ValueError
        If the mask has another shape, or does not sample the centre.
    """
    if mask.shape not in (shape, shape[1:]):
        raise ValueError(f"The calibration mask has the shape {mask.shape}; expected {shape} or {shape[1:]}.")
    block = center_block(np.broadcast_to(mask.astype(bool), shape))
    half = MAX_CALIBRATION // 2
    rows, columns = (
        slice(int(max(line[0], length // 2 - half)), int(min(line[-1] + 1, length // 2 + half)))
        for line, length in zip(map(np.flatnonzero, (block.any(axis=1), block.any(axis=0))), shape, strict=True)
    )
    return rows, columns


def _signal_kernels(block: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Return an orthonormal basis (rank, coil, height, width) of the windows of the calibration region."""
    windows = block.unfold(1, kernel[0], 1).unfold(2, kernel[1], 1)
    matrix = windows.permute(1, 2, 0, 3, 4).reshape(-1, len(block) * kernel[0] * kernel[1])
    # The right singular vectors follow from the smaller one of the two Gram matrices.
    few_windows = matrix.shape[0] < matrix.shape[1]
    energies, vectors = torch.linalg.eigh(matrix @ matrix.mH if few_windows else matrix.mH @ matrix)
    kept = energies > THRESHOLD * energies[-1]
    basis = vectors[:, kept]
    if few_windows:
        basis = matrix.mH @ basis / energies[kept].sqrt()
    return basis.mH.reshape(-1, len(block), *kernel)


def _pixel_operator(kernels: torch.Tensor) -> torch.Tensor:
    """Return samples of G that determine it, shape (2 * kernel height - 1, 2 * kernel width - 1, coil, coil)."""
    _, _, *sizes = kernels.shape
    rows, columns = (
        torch.exp(2j * torch.pi * torch.outer(_positions(2 * size - 1), torch.arange(size))).to(kernels.dtype)
        for size in sizes
    )
    images = torch.einsum("rchw,yh,xw->yxcr", kernels, rows, columns)
    return images @ images.mH / (sizes[0] * sizes[1])


def _positions(size: int) -> torch.Tensor:
    """Return the positions of the pixels of a row, from -1/2 to 1/2, with 0 at index size // 2."""
    return (torch.arange(size) - size // 2) / size


def _interpolation(points: int, size: int) -> torch.Tensor:
    """Return the matrix (size, points) from values of a trigonometric polynomial at `points`, odd, to its pixels."""
    frequencies = torch.arange(points) - points // 2
    distances = _positions(size)[:, None] - _positions(points)
    return torch.cos(2 * torch.pi * frequencies * distances[..., None]).mean(-1)


def _evaluate(operator: torch.Tensor, height: int, width: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of rows, and G in their pixels, shape (rows, width, coil, coil)."""
    points_y, points_x, coils, _ = operator.shape
    rows, columns = _interpolation(points_y, height), _interpolation(points_x, width)
    # The weights are real, so that real and imaginary parts are interpolated separately, without complex products.
    samples = columns @ torch.view_as_real(operator).reshape(points_y, points_x, -1)
    samples = samples.reshape(points_y, -1)
    step = max(1, _CHUNK // (width * coils**2))
    for start in range(0, height, step):
        part = slice(start, min(start + step, height))
        values = (rows[part] @ samples).view(-1, width, coils, coils, 2)
        yield part, torch.view_as_complex(values)


def _upsample(vectors: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """Interpolate vectors (height, width, coil), each of arbitrary phase, linearly and periodically along an axis."""
    points = vectors.shape[axis]
    places = (_positions(size) * points + points // 2) % points
    lower = places.floor().long()
    left, right = (vectors.index_select(axis, index % points) for index in (lower, lower + 1))
    fraction = (places - lower).view([-1 if other == axis else 1 for other in range(3)])
    phase = (right.conj() * left).sum(-1, keepdim=True).sgn()  # gives the right neighbour the phase of the left one
    return left * (1 - fraction) + right * phase * fraction


def fix_phase(maps: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Change the phase of sensitivities so that the virtual coil of the first principal component is real and positive.

    Parameters
    ----------
    maps : complex tensor of shape (height, width, coil)
    block : complex tensor of shape (coil, rows, columns)
        Samples of k-space, whose principal components are those of the coils.

    Returns
    -------
    complex tensor of the shape of `maps`
    """
    samples = block.flatten(1)
    component = torch.linalg.eigh(samples @ samples.mH)[1][:, -1]
    component = component * component[component.abs().argmax()].sgn().conj()  # eigenvectors have an arbitrary phase
    phase = (maps.conj() @ component).sgn()
    return maps * torch.where(phase == 0, 1, phase)[..., None]
