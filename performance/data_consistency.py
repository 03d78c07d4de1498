"""Compare the time of data consistency in complex arithmetic with that of the same steps with DIRECT's operators.

Run `python performance/data_consistency.py`. The last rows are the proximal step of a large acquisition, each measured
in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import extra_megabytes, in_fresh_process, interleaved_seconds, machine, markdown_table, write_results
from direct.data.transforms import expand_operator, fft2, ifft2, reduce_operator

from direct_hifimamba.nn.layers.data_consistency import HardDataConsistency, ProximalDataConsistency
from direct_hifimamba.nn.layers.sense import Acquisition, FourierConvention, Measurement

STEPS = 4
ITERATIONS = 6
SHAPES = ((1, 320, 320), (4, 128, 128), (16, 128, 128), (15, 640, 368))
LARGE = (32, 640, 368)


def make_measurement(coils: int, height: int, width: int) -> Measurement:
    """Return random k-space in which a quarter of the columns are sampled, and random normalised maps."""
    maps = torch.randn(1, coils, height, width, 2)
    maps /= maps.square().sum(dim=(1, -1), keepdim=True).sqrt()
    mask = (torch.arange(width) % 4 == 0).reshape(1, 1, 1, width, 1).expand(1, 1, height, width, 1).contiguous()
    return Measurement(torch.randn(1, coils, height, width, 2) * mask, mask, maps)


def hard_with_directs_operators(image: torch.Tensor, measurement: Measurement) -> torch.Tensor:
    """Replace measured samples `STEPS` times in real arithmetic, as DIRECT's own networks do."""
    for _ in range(STEPS):
        kspace = fft2(expand_operator(image, measurement.sensitivity_map, dim=1), dim=(2, 3))
        kspace = torch.where(measurement.sampling_mask == 0, kspace, measurement.masked_kspace)
        image = reduce_operator(ifft2(kspace, dim=(2, 3)), measurement.sensitivity_map, dim=1)
    return image


def make_calls(shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """Return forward and training calls of each variant, including the work that a network does once per call."""
    measurement = make_measurement(*shape)
    image = torch.randn(1, *shape[1:], 2)
    layers = {"hard": HardDataConsistency(STEPS), "proximal": ProximalDataConsistency(ITERATIONS)}

    def direct(image: torch.Tensor) -> torch.Tensor:
        return hard_with_directs_operators(image, measurement)

    def ours(name: str, reduce: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(image: torch.Tensor) -> torch.Tensor:
            given = measurement.reduce_mask() if reduce else measurement
            convention = FourierConvention(centered=True, normalized=True)
            acquisition = Acquisition.from_measurement(given, convention, estimate_noise=name == "proximal")
            return acquisition.leave(layers[name](acquisition.enter(image), acquisition))

        return call

    variants = {
        f"hard, {STEPS} steps, DIRECT's operators": direct,
        f"hard, {STEPS} steps, any mask": ours("hard", reduce=False),
        f"hard, {STEPS} steps, mask of columns": ours("hard", reduce=True),
        f"proximal, {ITERATIONS} iterations, any mask": ours("proximal", reduce=False),
        f"proximal, {ITERATIONS} iterations, mask of columns": ours("proximal", reduce=True),
    }

    def forward(variant: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        return torch.no_grad()(lambda: variant(image))

    def training(variant: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        return lambda: variant(image.clone().requires_grad_()).square().sum().backward()

    return {f"forward|{name}": forward(variant) for name, variant in variants.items()} | {
        f"training|{name}": training(variant) for name, variant in variants.items()
    }


def large_call(kind: str) -> None:
    """Print time and memory of the proximal step at `LARGE` as JSON."""
    call = next(c for name, c in make_calls(LARGE).items() if name.startswith(kind) and "proximal" in name)
    megabytes = extra_megabytes(call)
    seconds = interleaved_seconds({kind: call}, 3)[kind]
    print(json.dumps({"seconds": statistics.median(seconds), "megabytes": megabytes}))


def main() -> None:
    """Measure, write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", choices=("forward", "training"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.large:
        large_call(args.large)
        return
    rows, results = [], []
    for shape in SHAPES:
        seconds = interleaved_seconds(make_calls(shape), args.rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            kind, variant = name.split("|")
            first = next(other for other in medians if other.startswith(kind))
            ratio = statistics.median(mine / theirs for mine, theirs in zip(seconds[name], seconds[first], strict=True))
            size = f"{shape[0]} x {shape[1]} x {shape[2]}"
            rows.append([size, kind, variant, 1e3 * median, ratio])
            results.append({"shape": shape, "call": kind, "variant": variant, "seconds": seconds[name]})
    large = {kind: in_fresh_process(sys.argv[0], ["--large", kind], threads=1) for kind in ("forward", "training")}
    size = "{} x {} x {}".format(*LARGE)
    markdown = [
        *(f"- {name}: {value}" for name, value in machine().items()),
        f"- {args.rounds} rounds, one thread",
        "",
        markdown_table(["coils x height x width", "call", "variant", "median, ms", "of the first"], rows),
        "",
        markdown_table(
            ["coils x height x width", "call of the proximal step, any mask", "median, s", "extra memory, MB"],
            [[size, kind, values["seconds"], round(values["megabytes"])] for kind, values in large.items()],
        ),
    ]
    write_results(args.output, "data_consistency", {"rows": results, "large": large, **machine()}, "\n".join(markdown))


if __name__ == "__main__":
    main()
