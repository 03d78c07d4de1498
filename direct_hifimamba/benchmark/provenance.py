"""What is needed to repeat a benchmark, beside its data and its specification."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import direct_hifimamba
from direct_hifimamba.files import hash_file
from direct_hifimamba.ops import library
from direct_hifimamba.ops.selective_scan.interface import resolve_backend

_PACKAGES = ("direct-recon", "torch", "numpy", "h5py", "scipy", "scikit-image", "torchmetrics", "sewar")
_CODE_PACKAGES = ("direct-recon", "torch", "numpy", "sewar", "scikit-image")
_CODE_SUFFIXES = (".py", ".so", ".pyd")
_NETWORK_CODE = ("nn", "ops", "training/weight_decay.py")
_TRAINING_CODE = (
    "benchmark/plan/initialisation.py",
    "benchmark/run/runner.py",
    "data/espirit.py",
    "data/nlinv.py",
    "data/sensitivity.py",
    "training/direct_command.py",
    "training/distributed.py",
    "training/learning_rate.py",
    "training/seeded_data.py",
)


def find_versions(device: str) -> dict[str, str]:
    """Return versions of Python and of packages that are used, and the implementation of the scan on a device."""
    return {
        "python": platform.python_version(),
        "direct-hifimamba": direct_hifimamba.__version__,
        **{package: installed_version(package) for package in _PACKAGES},
        "selective scan": resolve_backend("auto", torch.device(device)),
        "compiled kernels": library.instruction_set() if library.INSTRUCTION_SETS else "not in use",
    }


def describe_code() -> dict[str, dict[str, str]]:
    """Return what trained models depend on beside data and configurations: hashes of source files, and versions.

    Files of the networks of this package are listed apart, since models of DIRECT do not depend on them. The code of
    metrics is not part of it: tables of scores record which metrics they were computed with.
    """
    return {
        "network": _hash_files(_NETWORK_CODE),
        "training": _hash_files(_TRAINING_CODE),
        "versions": {name: installed_version(name) for name in _CODE_PACKAGES},
    }


def _hash_files(members: Sequence[str]) -> dict[str, str]:
    package = Path(direct_hifimamba.__file__).parent
    paths = [path for member in members for path in (package / member, *(package / member).rglob("*"))]
    return {
        path.relative_to(package).as_posix(): hash_file(path) for path in sorted(paths) if path.suffix in _CODE_SUFFIXES
    }


def installed_version(package: str) -> str:
    """Return the version of an installed package, `not installed` where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def describe_host(device: str) -> str:
    """Return a description of the operating system, processor and memory, and of the GPU where one is used."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [platform.platform(), f"{_processor()} ({os.cpu_count()} logical cores)", f"{memory:.1f} GiB memory"]
    if device != "cpu" and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # Linux
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def git_revision() -> str | None:
    """Return the commit of this package's checkout, with `-dirty` if files were changed; None outside of a checkout."""
    package = Path(direct_hifimamba.__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=package,
            capture_output=True,
            text=True,
            check=True,
        )
        # Of an installed copy, the checkout around its virtual environment says nothing.
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=package, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def as_typed(arguments: Sequence[str | Path]) -> str:
    """Return a command of `direct-hifimamba` as a line of a shell."""
    return shlex.join(["direct-hifimamba", *map(str, arguments)])
