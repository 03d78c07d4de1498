"""What is needed to repeat a benchmark, beside its data and its specification."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import direct_hifimamba

_PACKAGES = ("direct-recon", "torch", "numpy", "h5py", "scipy", "scikit-image", "torchmetrics", "sewar")


def find_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    versions = {"python": platform.python_version(), "direct-hifimamba": direct_hifimamba.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def describe_host(device: str) -> str:
    """Operating system, processor and memory, and the GPU where one is used."""
    parts = [platform.platform(), f"{_processor()} ({os.cpu_count()} logical cores)"]
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{memory / 2**30:.1f} GiB memory")
    except (AttributeError, OSError, ValueError):  # not POSIX
        pass
    if device != "cpu" and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def git_revision() -> str | None:
    """Commit of the checkout that this package is in, with `-dirty` where files were changed; None outside of one."""
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


def program(arguments: Sequence[str | Path]) -> list[str]:
    """The words with which a process runs `direct-hifimamba`, by this Python, whether it is on the PATH or not."""
    return [sys.executable, "-m", "direct_hifimamba.cli", *map(str, arguments)]


def as_typed(arguments: Sequence[str | Path]) -> str:
    """The same as one would type it."""
    return shlex.join(["direct-hifimamba", *map(str, arguments)])
