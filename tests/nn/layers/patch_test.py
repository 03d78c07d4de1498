from __future__ import annotations

import itertools

import pytest
import torch

from direct_hifimamba.nn.layers.patch import PatchEmbedding, PatchProjection, pad_to_patches


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("patch_size", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 12), (7, 11)])
def test_sub_pixels_come_back_in_their_order(coils: int, patch_size: int, size: tuple[int, int]) -> None:
    # With unit weights an embedded patch is its pixels, row by row, coil by coil, real before imaginary; projecting
    # restores them.
    parts = 2 * coils
    channels = parts * patch_size**2
    embedding = PatchEmbedding(channels, patch_size, coils)
    projection = PatchProjection(channels, patch_size, 1.0, coils)
    embedding.norm = torch.nn.Identity()
    torch.nn.init.zeros_(embedding.projection.bias)
    torch.nn.init.zeros_(embedding.projection.weight)
    for row, column, part in itertools.product(range(patch_size), range(patch_size), range(parts)):
        embedding.projection.weight.data[(row * patch_size + column) * parts + part, part, row, column] = 1
    torch.nn.init.eye_(projection.projection.weight)
    image = torch.randn(2 * coils, *size, 2)
    features = embedding(image)
    assert features.shape == (2, -(-size[0] // patch_size), -(-size[1] // patch_size), channels)
    assert torch.equal(projection(features, *size), image)


def test_features_are_normalised() -> None:
    features = PatchEmbedding(16, 2)(5 + 3 * torch.randn(2, 8, 6, 2))
    torch.testing.assert_close(features.mean(dim=-1), torch.zeros(2, 4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(dim=-1, unbiased=False), torch.ones(2, 4, 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("size", "patch_size"), [((16, 16), 3), ((17, 16), 2), ((16, 31), 4)])
def test_padding_mirrors_the_last_pixels(size: tuple[int, int], patch_size: int) -> None:
    image = torch.randn(1, *size, 2)
    padded = pad_to_patches(image, patch_size)
    assert all(
        full % patch_size == 0 and 0 <= full - n < patch_size for full, n in zip(padded.shape[1:3], size, strict=True)
    )
    for y, x in itertools.product(range(padded.shape[1]), range(padded.shape[2])):
        mirrored_y = y if y < size[0] else 2 * (size[0] - 1) - y
        mirrored_x = x if x < size[1] else 2 * (size[1] - 1) - x
        assert torch.equal(padded[:, y, x], image[:, mirrored_y, mirrored_x])


def test_whole_patches_are_not_padded() -> None:
    image = torch.randn(1, 12, 9, 2)
    assert pad_to_patches(image, 3) is image
