"""Which expert of HiFi-MambaV2 every pixel went to."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.acquisition import read_acquisition
from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2
from direct_hifimamba.nn.hifimamba.moe import Routing, watch_routing
from direct_hifimamba.reconstruction.reconstructor import Reconstructor


@dataclass(frozen=True)
class BlockRouting:
    """What the router of one block decided for the slices of a volume.

    Attributes
    ----------
    block : str
        Path of the block in the network, such as `stages.0.blocks.1`.
    experts : dict
        By the index of the slice, uint8 array of shape (height, width): choice of every pixel of the feature maps,
        each of which is a patch of the image. Slices without signal are not there.
    shares : float array of shape (experts,)
        Fraction of the pixels that chose each expert.
    """

    block: str
    experts: dict[int, NDArray[np.uint8]]
    shares: NDArray[np.float64]


def read_routing(checkpoint: Path, volume: Path, device: str = "cpu") -> list[BlockRouting]:
    """Reconstruct a volume and return what the routers decide.

    Parameters
    ----------
    checkpoint : Path
        Of `direct train`, with its configuration beside it.
    volume : Path
        File with k-space and mask.
    device : str

    Returns
    -------
    list of BlockRouting
        From the first block to the last; empty if the model is another one or has no routers.

    Raises
    ------
    OSError, ValueError
        As :class:`Reconstructor` and :func:`read_acquisition`.
    """
    reconstructor = Reconstructor.from_checkpoint(checkpoint, device=device)
    network = reconstructor.network
    if not isinstance(network, HiFiMambaV2):
        return []
    kspace, mask, _ = read_acquisition(volume)
    shape = tuple(-(-size // network.config.patch_size) for size in kspace.shape[-2:])
    filled = np.flatnonzero(kspace.reshape(len(kspace), -1).any(axis=1))
    choices: dict[str, list[NDArray[np.int64]]] = {}

    def collect(block: str, routing: Routing) -> None:
        choices.setdefault(block, []).append(routing.experts.cpu().numpy())

    with watch_routing(network, collect) as routers:
        reconstructor(kspace[filled], mask, progress=True)
    routings = []
    for block, router in routers.items():
        counts = np.bincount(np.concatenate(choices[block]), minlength=router.num_experts)
        maps = (experts.reshape(shape).astype(np.uint8) for experts in choices[block])
        by_slice = dict(zip(filled.tolist(), maps, strict=True))
        routings.append(BlockRouting(block, by_slice, counts / counts.sum()))
    return routings
