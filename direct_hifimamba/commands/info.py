"""`direct-hifimamba info`: print versions, devices and backends of the selective scan of this installation."""

from __future__ import annotations

import argparse
import platform

import torch

from direct_hifimamba.benchmark.provenance import installed_version
from direct_hifimamba.ops.selective_scan.interface import BACKENDS, device_type, resolve_backend, unavailable_because

_PACKAGES = ("direct-hifimamba", "direct-recon", "torch", "triton", "mamba-ssm")


def _device(kind: str) -> str:
    return kind if kind == "cpu" or torch.cuda.is_available() else f"{kind} (no device here)"


def _describe_backend(name: str) -> str:
    """Return on which devices a backend of the selective scan runs, or why it is not available."""
    reasons = {kind: unavailable_because(name, kind, torch.float32) for kind in ("cpu", "cuda")}
    usable = [kind for kind, reason in reasons.items() if reason is None]
    if not usable:
        return f"not available: {reasons[device_type(name) or 'cpu']}"
    if name == "native":
        from direct_hifimamba.ops.library import instruction_set

        return f"available on cpu, with {instruction_set()} instructions"
    return f"available on {' and '.join(map(_device, usable))}"


def describe() -> str:
    """Return versions, devices and the backends of the selective scan, as lines of text."""
    lines = [f"{package:18}{installed_version(package)}" for package in _PACKAGES]
    lines.append(f"{'python':18}{platform.python_version()}")
    lines.append(f"{'cpu':18}{platform.machine()}, {torch.get_num_threads()} threads")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines.append(f"{'cuda':18}{', '.join(devices) or 'no device'}")
    lines += ["", "Selective scan backends:"]
    lines += [f"  {name:12}{_describe_backend(name)}" for name in BACKENDS if name != "auto"]
    for kind in ("cpu", "cuda"):
        lines.append(f"  {'auto':12}takes {resolve_backend('auto', torch.device(kind))} on {_device(kind)}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba info`: none."""


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba info`."""
    print(describe())
