"""Measure time, memory and error of the selective scan's backends and of other implementations on a CPU.

Run `python performance/scan.py`. Arguments have the network's layout, (batch, length, channels), with batch 1, a skip,
a bias and softplus. In every round all implementations are called in turn, and short calls are repeated and averaged;
calls of more than a second have fewer rounds. The tables have medians over rounds. Memory is the increase of the peak
resident size by one call in a fresh process.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    extra_megabytes,
    in_fresh_process,
    interleaved_seconds,
    machine,
    markdown_table,
    write_results,
)

from direct_hifimamba.ops.library import INSTRUCTION_SETS, ISA_VARIABLE, instruction_set
from direct_hifimamba.ops.selective_scan import selective_scan

Scan = Callable[..., torch.Tensor]

#: State size for every number of channels.
STATES = {128: 16, 64: 8}
THREADS = (1, 2)
KINDS = ("forward", "forward + backward")
FASTEST = instruction_set()  # read first, because the calls below change the environment variable
SLOW_SECONDS, SLOW_ROUNDS = 1.0, 2
#: Largest lengths for backward passes: that of mamba-ssm takes quadratic time and memory, that of `reference` a minute.
LONGEST_BACKWARD = {"mamba-ssm ref": 1024, "reference": 4096}
SOURCE = Path(__file__).parents[1] / "direct_hifimamba/ops/csrc"
#: Floats per vector and compiler flags of every instruction set, as in setup.py.
VECTORS = {
    "avx512": (16, ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]),
    "avx2": (8, ["-mavx2", "-mfma"]),
    "portable": (4, []),
}


def native_scan(name: str) -> Scan:
    """Return the native scan with an instruction set; the backward pass uses that of the last call."""

    def scan(*arguments: Any) -> torch.Tensor:
        os.environ[ISA_VARIABLE] = name
        return selective_scan(*arguments, backend="native")

    return scan


def mamba_ssm_reference(package: ModuleSpec) -> Scan:
    """Return `selective_scan_ref` of mamba-ssm, which is also installed without a CUDA compiler.

    Its package and its module also import compiled kernels and language models, which are replaced by empty modules.
    """
    sys.modules["mamba_ssm"] = module_from_spec(package)
    sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref


def implementations() -> dict[str, Scan]:
    """Return the implementations by name; they take the arguments of `selective_scan` up to `delta_softplus`."""
    found = {"native": native_scan(FASTEST)}
    found |= {f"native, {name}": native_scan(name) for name in INSTRUCTION_SETS if name != FASTEST}
    found |= {name: partial(selective_scan, backend=name) for name in ("torch", "reference")}
    try:
        from mambapy.pscan import pscan
    except ImportError:
        pass
    else:

        def mambapy(u, delta, A, B, C, D, z, delta_bias, delta_softplus):  # type: ignore[no-untyped-def]
            step = F.softplus(delta + delta_bias[:, None]).mT[..., None]
            inputs = step * u.mT[..., None] * B[:, 0].mT[:, :, None]
            states = pscan(torch.exp(step * A), inputs)
            return (states @ C[:, 0].mT[..., None]).squeeze(-1).mT + D[:, None] * u

        found["mambapy"] = mambapy
    package = find_spec("mamba_ssm")
    if package is not None:
        with suppress(ImportError):  # of other packages that the module needs
            found["mamba-ssm ref"] = mamba_ssm_reference(package)
    return found


def make_arguments(channels: int, state: int, length: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Return arguments with the deltas and decays of a network at initialisation."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    step = torch.rand(channels, generator=generator).mul(4.6).sub(6.9).exp()  # log-uniform in [1e-3, 1e-1]
    return [
        normal(1, length, channels).mT,
        normal(1, length, channels).mul_(0.1).mT,
        -torch.arange(1.0, state + 1, dtype=dtype).repeat(channels, 1),
        normal(1, length, 1, state).permute(0, 2, 3, 1),
        normal(1, length, 1, state).permute(0, 2, 3, 1),
        normal(channels),
        None,
        step.expm1().log().to(dtype),
    ]


def make_call(scan: Scan, kind: str, arguments: Sequence[Any]) -> Callable[[], list[torch.Tensor]]:
    """Return a function that computes the output, or the output and all gradients."""
    if kind == "forward":

        def forward() -> list[torch.Tensor]:
            with torch.no_grad():
                return [scan(*arguments, True)]

        return forward

    leaves = [None if t is None else t.detach().requires_grad_() for t in arguments]
    grad_y = torch.randn(arguments[0].mT.shape, generator=torch.Generator().manual_seed(1)).to(arguments[0].dtype).mT

    def both() -> list[torch.Tensor]:
        y = scan(*leaves, True)
        return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad_y)]

    return both


def measured_calls(kind: str, channels: int, state: int, length: int) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """Return the calls of all implementations that are measured at this length, by name."""
    arguments = make_arguments(channels, state, length)
    return {
        name: make_call(scan, kind, arguments)
        for name, scan in implementations().items()
        if kind == "forward" or length <= LONGEST_BACKWARD.get(name, length)
    }


def measure_times(kind: str, channels: int, state: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every round, by implementation."""
    fast: dict[str, Callable[[], object]] = {}
    slow: dict[str, Callable[[], object]] = {}
    for name, call in measured_calls(kind, channels, state, length).items():
        start = time.perf_counter()
        call()
        (fast if time.perf_counter() - start < SLOW_SECONDS else slow)[name] = call
    return interleaved_seconds(fast, rounds) | interleaved_seconds(slow, min(rounds, SLOW_ROUNDS))


def measure_errors(kind: str, channels: int, state: int, length: int) -> dict[str, float]:
    """Return the largest difference from the reference in float64, relative to its largest value, by implementation.

    Where the reference takes too long, the chunked scan in float64 replaces it.
    """
    backend = "reference" if kind == "forward" or length <= LONGEST_BACKWARD["reference"] else "torch"
    oracle = partial(selective_scan, backend=backend)
    exact = make_call(oracle, kind, make_arguments(channels, state, length, torch.float64))()
    return {
        name: max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(call(), exact, strict=True))
        for name, call in measured_calls(kind, channels, state, length).items()
    }


def measure_memory(name: str, kind: str, channels: int, state: int, length: int) -> float:
    """Return the megabytes that one call adds, after a call at length 1 that loads libraries."""
    scan = implementations()[name]
    make_call(scan, kind, make_arguments(channels, state, 1))()
    return extra_megabytes(make_call(scan, kind, make_arguments(channels, state, length)))


def measure_limits(threads: int) -> dict[str, float]:
    """Return the bytes per second of a copy, and the seconds of an exponential and of a multiply-add, on `threads`."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    copies = interleaved_seconds({"copy": lambda: target.copy_(source)}, rounds=15)["copy"]
    width, flags = VECTORS[FASTEST]
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/limits"
        command = ["c++", "-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", *flags]
        command += [f"-DNATIVE_WIDTH={width}", f"-I{SOURCE}", str(Path(__file__).with_name("limits.cpp"))]
        subprocess.run([*command, "-o", program], check=True)
        exponential, multiply_add = map(float, subprocess.check_output([program], text=True).split()[1:3])
    return {
        "bytes per second": 2 * source.nbytes / statistics.median(copies),
        "exponential": exponential * 1e-9 / width / threads,
        "multiply-add": multiply_add * 1e-9 / width / threads,
    }


def bounds(limits: dict[str, float], kind: str, channels: int, state: int, length: int) -> tuple[float, float]:
    """Return lower bounds in seconds for the arithmetic and for the memory traffic.

    The forward pass needs an exponential and three multiply-adds per channel, state and step; the backward pass
    recomputes the state and needs ten more. Every argument and result is read or written once, inputs once more in the
    backward pass.
    """
    both = kind != "forward"
    arithmetic = (2 if both else 1) * limits["exponential"] + (13 if both else 3) * limits["multiply-add"]
    numbers = (8 if both else 3) * channels + (6 if both else 2) * state
    return channels * state * length * arithmetic, 4 * numbers * length / limits["bytes per second"]


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder (default: %(default)s)")
    parser.add_argument("--channels", type=int, nargs="+", default=list(STATES), choices=STATES, help="default: all")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 25600], help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds (default: %(default)s)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def work(task: str, *arguments: str) -> Any:
    """Return the result of one task of a fresh process."""
    if task == "limits":
        return measure_limits(int(arguments[0]))
    if task == "memory":
        name, kind, *sizes = arguments
        return measure_memory(name, kind, *map(int, sizes))
    kind, *sizes = arguments
    if task == "errors":
        return measure_errors(kind, *map(int, sizes))
    return measure_times(kind, *map(int, sizes))


def measure_case(
    limits: dict[int, dict[str, float]], kind: str, sizes: tuple[int, int, int], rounds: int
) -> dict[str, Any]:
    """Measure one kind of call at one size, each figure in a process of its own."""
    texts = [kind, *map(str, sizes)]
    case: dict[str, Any] = {"kind": kind, "channels, state, length": sizes, "threads": {}}
    for threads in THREADS:
        arithmetic, memory = bounds(limits[threads], kind, *sizes)
        seconds = in_fresh_process(__file__, ["--worker", "times", *texts, str(rounds)], threads)
        case["threads"][threads] = {"arithmetic limit": arithmetic, "memory limit": memory, "seconds": seconds}
    case["error"] = in_fresh_process(__file__, ["--worker", "errors", *texts], 1)
    case["extra MB"] = {
        name: in_fresh_process(__file__, ["--worker", "memory", name, *texts], 1) for name in case["error"]
    }
    return case


def tabulate(case: dict[str, Any]) -> str:
    """Return a case as Markdown."""
    channels, state, length = case["channels, state, length"]
    header, limits = ["implementation"], []
    for threads, measured in case["threads"].items():
        header += [f"ms, {threads} thread(s)", "rounds", "of the limit", "times native"]
        arithmetic, memory = 1e3 * measured["arithmetic limit"], 1e3 * measured["memory limit"]
        limits.append(f"{threads} thread(s) arithmetic {arithmetic:.3g} ms, memory {memory:.3g} ms")
    rows = []
    for name, error in case["error"].items():
        row: list[object] = [name]
        for measured in case["threads"].values():
            medians = {other: statistics.median(values) for other, values in measured["seconds"].items()}
            bound = max(measured["arithmetic limit"], measured["memory limit"]) / medians[name]
            row += [1e3 * medians[name], len(measured["seconds"][name]), f"{100 * bound:.0f} %"]
            row.append(medians[name] / medians["native"])
        rows.append([*row, case["extra MB"][name], f"{error:.0e}"])
    title = f"## {channels} channels, state {state}, length {length}: {case['kind']}"
    table = markdown_table([*header, "extra MB", "error"], rows)
    return f"{title}\n\nLimits: {'; '.join(limits)}.\n\n{table}"


def main() -> None:
    """Measure everything and write the results."""
    options = parse_arguments()
    if options.worker:
        print(json.dumps(work(*options.worker)))
        return
    description = machine() | {"instruction set": FASTEST}
    limits = {threads: in_fresh_process(__file__, ["--worker", "limits", str(threads)], threads) for threads in THREADS}
    cases = [
        measure_case(limits, kind, (channels, STATES[channels], length), options.rounds)
        for channels, length, kind in itertools.product(options.channels, options.lengths, KINDS)
    ]
    head = f"`python performance/scan.py {' '.join(sys.argv[1:])}` on "
    head += ", ".join(f"{key} {value}" for key, value in description.items()) + "."
    markdown = "\n\n".join(["# Selective scan", head, *map(tabulate, cases)])
    write_results(options.output, "scan", {"machine": description, "limits": limits, "cases": cases}, markdown)


if __name__ == "__main__":
    main()
