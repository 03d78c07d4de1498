"""Measure time and memory of HiFi-MambaV2 at full size (128 channels, 6 x 2 blocks) on a CPU.

Run `python performance/network.py`. In every round all sizes are measured in turn, and short calls are repeated and
averaged; the table has medians over rounds. Memory is what one call adds to a fresh process that holds the model, whose
own size is in brackets. Published figures were measured with the environment variables `RETAIN` of allocation.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    extra_megabytes,
    in_fresh_process,
    interleaved_seconds,
    machine,
    markdown_table,
    peak_megabytes,
    write_results,
)
from direct.data.transforms import fft2, ifft2

from direct_hifimamba import HiFiMambaV2
from direct_hifimamba.benchmark.run.cost import count_macs

#: Options of the network for every kind of call.
KINDS: dict[str, dict[str, bool]] = {
    "forward": {},
    "training step": {},
    "training step, checkpointing": {"activation_checkpointing": True},
}
#: Size and number of the matrix products whose rate is measured in every round.
MATRIX_SIZE, PRODUCTS = 1024, 15


def multiply_matrices() -> None:
    """Multiply two square matrices `PRODUCTS` times."""
    a, b = torch.ones(2, MATRIX_SIZE, MATRIX_SIZE)
    for _ in range(PRODUCTS):
        a @ b


def make_call(kind: str, size: int) -> Callable[[], object]:
    """Return a call of a full-size network with one slice of one coil, `size` x `size`."""
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


def measure_memory(kind: str, size: int) -> None:
    """Print [extra, base] megabytes as JSON; for a fresh process."""
    call = make_call(kind, size)
    base = peak_megabytes()
    print(json.dumps([extra_megabytes(call), base]))


def main() -> None:
    """Measure and write `network.json` and `network.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    parser.add_argument("--forward-sizes", type=int, nargs="+", default=[64, 128, 256, 320, 640], help="image sizes")
    parser.add_argument("--training-sizes", type=int, nargs="+", default=[64, 128, 256], help="image sizes")
    parser.add_argument("--memory-of", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(args.memory_of[0], int(args.memory_of[1]))
        return

    cases = [
        (kind, size) for kind in KINDS for size in (args.forward_sizes if kind == "forward" else args.training_sizes)
    ]
    memory = {
        (kind, size): in_fresh_process(__file__, ["--memory-of", kind, str(size)], threads=max(args.threads))
        for kind, size in cases
    }
    results: dict[str, Any] = {
        "machine": machine(),
        "rounds": args.rounds,
        "multiply_accumulates": {size: count_macs(make_call("forward", size)) for size in args.forward_sizes},
        "matmul_rate": {},
        "records": [],
    }
    for threads in args.threads:
        torch.set_num_threads(threads)
        calls = {"matrix product": multiply_matrices} | {
            f"{kind} {size}": make_call(kind, size) for kind, size in cases
        }
        seconds = interleaved_seconds(calls, args.rounds)
        rate = PRODUCTS * MATRIX_SIZE**3 / statistics.median(seconds["matrix product"])
        results["matmul_rate"][threads] = rate
        for kind, size in cases:
            extra, base = memory[kind, size]
            record = {"kind": kind, "size": size, "threads": threads, "seconds": seconds[f"{kind} {size}"]}
            results["records"].append(record | {"extra_megabytes": extra, "base_megabytes": base})
        # Written after each number of threads, so that an interruption loses little.
        write_results(args.output, "network", results, to_markdown(results))


def to_markdown(results: dict[str, Any]) -> str:
    """Return the results as Markdown: the conditions of the measurement, and a table."""
    macs, rates = results["multiply_accumulates"], results["matmul_rate"]
    lines = [f"- {key}: {value}" for key, value in results["machine"].items()]
    lines += [
        f"- float32 matrix product, 1024 x 1024, {threads} threads: {rate / 1e9:.1f} G multiply-accumulates per second"
        for threads, rate in rates.items()
    ]
    lines += [f"- forward pass at {size}: {count / 1e9:.1f} G multiply-accumulates" for size, count in macs.items()]
    lines += [f"- {results['rounds']} rounds", ""]
    rows = []
    for record in results["records"]:
        size, threads, median = record["size"], record["threads"], statistics.median(record["seconds"])
        is_forward = record["kind"] == "forward"
        rows.append(
            [
                record["kind"],
                f"{size} x {size}",
                threads,
                median,
                median / size**2 * 1e6,
                f"{record['extra_megabytes']:.0f} ({record['base_megabytes']:.0f})",
                f"{macs[size] / median / rates[threads]:.0%}" if is_forward else "",
            ]
        )
    header = [
        "call",
        "image",
        "threads",
        "median, s",
        "per pixel, us",
        "extra memory, MB",
        "of the matrix product rate",
    ]
    return "\n".join(lines) + "\n" + markdown_table(header, rows)


if __name__ == "__main__":
    main()
