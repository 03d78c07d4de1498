"""Memory that a call needs."""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path


def extra_resident_bytes(call: Callable[[], object]) -> int | None:
    """Return the largest increase of this process's resident size during a call, in bytes; None except on Linux.

    Call it in a new process: memory that was freed before and not returned to the system is not counted. With glibc,
    all freed memory is returned first.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # The kernel's record is set to the current size. That of getrusage can be inherited from the parent process.
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
