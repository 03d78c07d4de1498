"""Time and memory of HiFi-MambaV2 at full size (128 channels, 6 x 2 blocks), on a CPU.

Run `python benchmarks/network.py --output docs/benchmarks`. Times are medians of rounds that go through all sizes;
memory is what one call adds to a fresh process that holds the model, its size in brackets.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    extra_megabytes,
    in_fresh_process,
    interleaved_medians,
    machine,
    markdown_table,
    matmul_rate,
    peak_megabytes,
    write_results,
)
from direct.data.transforms import fft2, ifft2
from torch.utils.flop_counter import FlopCounterMode

from direct_hifimamba import HiFiMambaV2
from direct_hifimamba.ops.inverted_bottleneck import inverted_bottleneck_plain

FORWARD_SIZES = (64, 128, 256, 320, 640)
TRAINING_SIZES = (64, 128, 256)
#: What is measured: kind of call -> options of the network.
KINDS = {
    "forward": {},
    "training step": {},
    "training step, checkpointing": {"activation_checkpointing": True},
}


def make_call(kind: str, size: int) -> Callable[[], object]:
    """A call of a full-size network with one slice of one coil, `size` x `size`."""
    torch.manual_seed(0)
    model = HiFiMambaV2(fft2, ifft2, **KINDS[kind])
    mask = torch.zeros(1, 1, 1, size, 1)
    mask[..., ::4, :] = 1
    maps = torch.zeros(1, 1, size, size, 2)
    maps[..., 0] = 1
    measurement = {"masked_kspace": torch.randn(maps.shape) * mask, "sampling_mask": mask, "sensitivity_map": maps}

    def forward() -> None:
        with torch.no_grad():
            model(**measurement)

    def training_step() -> None:
        image, balance = model(**measurement)
        (image.abs().mean() + balance).backward()
        model.zero_grad()

    if kind == "forward":
        model.eval()
        return forward
    return training_step


def multiply_accumulates(size: int) -> float:
    """Multiply-accumulates of matrix products and convolutions in one forward pass, counted by PyTorch."""
    import direct_hifimamba.layers.bottleneck as bottleneck

    banded = bottleneck.inverted_bottleneck
    # As defined: bands would count their statistics, which stand in for passes over memory.
    bottleneck.inverted_bottleneck = inverted_bottleneck_plain  # type: ignore[attr-defined]
    try:
        with FlopCounterMode(display=False) as counter:
            make_call("forward", size)()
    finally:
        bottleneck.inverted_bottleneck = banded  # type: ignore[attr-defined]
    return counter.get_total_flops() / 2


def measure_memory(kind: str, size: int) -> None:
    """Print [extra, base] megabytes as JSON; for a fresh process."""
    call = make_call(kind, size)
    base = peak_megabytes()
    print(json.dumps([extra_megabytes(call), base]))


def main() -> None:
    """Measure and write `network.json` and `network.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    parser.add_argument("--quick", action="store_true", help="two rounds of the two smallest sizes")
    parser.add_argument("--memory-of", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(args.memory_of[0], int(args.memory_of[1]))
        return

    rounds = 2 if args.quick else args.rounds
    cases = [
        (kind, size)
        for kind in KINDS
        for size in (FORWARD_SIZES if kind == "forward" else TRAINING_SIZES)[: 2 if args.quick else None]
    ]
    memory = {
        (kind, size): in_fresh_process(__file__, ["--memory-of", kind, str(size)], threads=max(args.threads))
        for kind, size in cases
    }
    macs = {size: multiply_accumulates(size) for size in FORWARD_SIZES[: 2 if args.quick else None]}
    rows, records = [], []
    rates = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        rates[threads] = matmul_rate()
        calls = {f"{kind} {size}": make_call(kind, size) for kind, size in cases}
        seconds = interleaved_medians(calls, rounds)
        for kind, size in cases:
            median = statistics.median(seconds[f"{kind} {size}"])
            extra, base = memory[kind, size]
            share = macs[size] / median / rates[threads] if kind == "forward" else None
            records.append(
                {
                    "kind": kind,
                    "size": size,
                    "threads": threads,
                    "seconds": seconds[f"{kind} {size}"],
                    "extra_megabytes": extra,
                    "base_megabytes": base,
                    "multiply_accumulates": macs[size] if kind == "forward" else None,
                }
            )
            rows.append(
                [
                    kind,
                    f"{size} x {size}",
                    threads,
                    median,
                    median / size**2 * 1e6,
                    f"{extra:.0f} ({base:.0f})",
                    "" if share is None else f"{share:.0%}",
                ]
            )

    table = markdown_table(
        ["call", "image", "threads", "median, s", "per pixel, us", "extra memory, MB", "of the matrix product rate"],
        rows,
    )
    description = "\n".join(f"- {key}: {value}" for key, value in machine().items())
    rate = ", ".join(f"{rates[threads] / 1e9:.1f} G with {threads}" for threads in args.threads)
    markdown = (
        f"{description}\n- multiply-accumulates per second of a 1024 x 1024 float32 matrix product: {rate} threads\n"
        f"- multiply-accumulates of a forward pass: {', '.join(f'{n / 1e9:.1f} G at {s}' for s, n in macs.items())}\n"
        f"- {rounds} rounds\n\n{table}"
    )
    results = {"machine": machine(), "rounds": rounds, "matmul_rate": rates, "records": records}
    write_results(args.output, "network", results, markdown)


if __name__ == "__main__":
    main()
