"""Tests of direct_hifimamba.data.fourier."""

import numpy as np
import pytest

from direct_hifimamba.data.fourier import image_to_kspace, kspace_to_image, root_sum_of_squares


def _random_complex(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.mark.parametrize("shape", [(8, 10), (3, 7, 9)])
def test_image_to_kspace_is_the_centred_unitary_transform(shape):
    image = _random_complex(*shape)
    height, width = shape[-2:]
    # The definition, as two matrices: both domains have their origin at index length // 2.
    rows, columns = (np.arange(length) - length // 2 for length in (height, width))
    transform_rows = np.exp(-2j * np.pi * np.outer(rows, rows) / height) / height**0.5
    transform_columns = np.exp(-2j * np.pi * np.outer(columns, columns) / width) / width**0.5
    np.testing.assert_allclose(
        image_to_kspace(image), np.einsum("ky,...yx,lx->...kl", transform_rows, image, transform_columns), atol=1e-5
    )


def test_kspace_to_image_inverts():
    image = _random_complex(2, 7, 10)
    np.testing.assert_allclose(kspace_to_image(image_to_kspace(image)), image, atol=1e-6)


def test_root_sum_of_squares_with_and_without_coil_axis():
    image = _random_complex(3, 6, 8)
    expected = np.sqrt((np.abs(image) ** 2).sum(0))
    np.testing.assert_allclose(root_sum_of_squares(image_to_kspace(image)), expected, rtol=1e-5)
    np.testing.assert_allclose(root_sum_of_squares(image_to_kspace(image[0])), np.abs(image[0]), rtol=1e-4, atol=1e-6)


def test_uncentred_transform_has_its_origins_in_the_corner():
    image = _random_complex(3, 8, 10)
    kspace = np.fft.fft2(image, norm="ortho").astype(np.complex64)
    np.testing.assert_allclose(kspace_to_image(kspace, centered=False), image, atol=1e-6)
    expected = np.linalg.norm(image, axis=0)
    np.testing.assert_allclose(root_sum_of_squares(kspace, centered=False), expected, atol=1e-5)
