"""Contact sheets of volumes, in PNG."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.utils import save_image

from direct_hifimamba.data.formats.images import Volume
from direct_hifimamba.files import replace_when_complete

SLICES = 25
"""Most slices that are shown; of more, some are, evenly spread over the volume."""
WHITE = 0.999
"""Quantile of the magnitudes that is shown white."""


def write_images(path: Path, images: Iterable[NDArray[Any]], volume: Volume) -> None:
    """Write a sheet with at most `SLICES` slices, equally scaled, as `images.write_images` does."""
    count = min(volume.num_slices, SLICES)
    chosen = set(np.linspace(0, volume.num_slices - 1, count).round().astype(int).tolist())
    shown = [np.abs(image) for number, image in enumerate(images) if number in chosen]
    white = max(np.quantile(shown, WHITE), np.finfo(np.float32).tiny)
    tiles = torch.from_numpy(np.clip(np.stack(shown) / white, 0, 1))[:, None]
    with replace_when_complete(path) as partial:
        save_image(tiles, partial, format="png", nrow=int(np.ceil(count**0.5)))
