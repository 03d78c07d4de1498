"""Measure how much time and memory each group of compiled kernels saves in the network, on one thread of a CPU.

Run `python performance/kernels.py`. The variants are called in turn. Seconds are processor time, so that other programs
have little influence. Memory is that of the tensors, except parameters, that PyTorch stores for the backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from common import machine, markdown_table, write_results
from direct.data.transforms import fft2, ifft2
from tqdm import tqdm

from direct_hifimamba import HiFiMambaV2
from direct_hifimamba.nn.hifimamba import bottleneck, moe
from direct_hifimamba.nn.layers.selective_scan_2d import SelectiveScan2D
from direct_hifimamba.ops.experts import sum_of_experts_definition
from direct_hifimamba.ops.inverted_bottleneck import inverted_bottleneck_definition

#: Groups of kernels that PyTorch replaces in each variant.
VARIANTS: dict[str, tuple[str, ...]] = {
    "all kernels": (),
    "without the bottleneck": ("bottleneck",),
    "without the experts": ("experts",),
    "without the scan": ("scan",),
    "plain PyTorch": ("bottleneck", "experts", "scan"),
}
#: Channels, blocks per stage and image size of the networks.
CASES = ((128, (1,), 320), (32, (1, 1, 1), 128))


@contextmanager
def without(groups: Collection[str], network: HiFiMambaV2) -> Iterator[None]:
    """Replace these groups of kernels in `network` by PyTorch within this context."""
    for module in network.modules():
        if isinstance(module, SelectiveScan2D):
            module.backend = "torch" if "scan" in groups else "auto"
    with ExitStack() as patches:
        if "bottleneck" in groups:
            patches.enter_context(mock.patch.object(bottleneck, "inverted_bottleneck", inverted_bottleneck_definition))
        if "experts" in groups:
            patches.enter_context(mock.patch.object(moe, "sum_of_experts", sum_of_experts_definition))
        yield


def kept_megabytes(network: HiFiMambaV2, forward: Callable[[], object]) -> float:
    """Return the memory of the tensors that are stored for the backward pass, in MB of 10^6 bytes."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return sum(size for address, size in sizes.items() if address not in parameters) / 1e6


def measure(channels: int, blocks: tuple[int, ...], size: int, rounds: int) -> list[list[object]]:
    """Return the rows of the table for one network."""
    torch.manual_seed(0)
    options = {"initialisation": "balanced", "stochastic_depth": 0.0, "scan_dropout": 0.0}
    network = HiFiMambaV2(fft2, ifft2, hidden_channels=channels, blocks_per_stage=blocks, **options)
    mask, maps = torch.zeros(1, 1, 1, size, 1), torch.zeros(1, 1, size, size, 2)
    mask[..., ::4, :], maps[..., 0] = 1, 1
    measurement = (torch.randn(maps.shape) * mask, mask, maps)

    def predict() -> None:
        with torch.no_grad():
            network(*measurement)

    def train() -> None:
        image, balance = network(*measurement)
        (image.abs().mean() + balance).backward()
        network.zero_grad()

    seconds: dict[tuple[str, str], list[float]] = {}
    for counted in tqdm([False, *[True] * rounds], unit="round", leave=False):
        for kind, call in (("forward", predict), ("training step", train)):
            for name, groups in VARIANTS.items():
                with without(groups, network):
                    start = time.process_time()
                    call()
                    if counted:
                        seconds.setdefault((kind, name), []).append(time.process_time() - start)
    rows: list[list[object]] = []
    for name, groups in VARIANTS.items():
        with without(groups, network):
            kept = kept_megabytes(network, lambda: network(*measurement))
        times = [f(seconds[kind, name]) for kind in ("forward", "training step") for f in (min, statistics.median)]
        rows.append([f"{channels} channels, {len(blocks)} blocks, {size} x {size}", name, *times, kept])
    return rows


def main() -> None:
    """Measure and write `kernels.json` and `kernels.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for channels, blocks, size in CASES for row in measure(channels, blocks, size, args.rounds)]
    header = ["network", "variant", "forward, s", "median", "training step, s", "median", "kept for backward, MB"]
    results = {"machine": machine(), "rounds": args.rounds, "header": header, "rows": rows}
    write_results(args.output, "kernels", results, markdown_table(header, rows))


if __name__ == "__main__":
    main()
