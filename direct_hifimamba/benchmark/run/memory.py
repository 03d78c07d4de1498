"""Memory that a call takes."""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path


def extra_resident_bytes(call: Callable[[], object]) -> int | None:
    """By how many bytes a call raises the resident size of this process at most; None where only Linux would tell.

    For a fresh process: what it has freed before is not always given back to the system, and is not counted then. With
    glibc all of it is.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # The kernel's record becomes the present size. That of getrusage can be inherited from the parent process.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        call()
        return None
    before = _peak_resident_bytes()
    call()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
