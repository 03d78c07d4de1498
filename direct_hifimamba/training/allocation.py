"""Memory of the CPU that is kept between tensors instead of given back to the system."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST = 2**31 - 1  # bytes, that an int holds


def keep_freed_memory() -> bool:
    """Make glibc keep memory that this process, and those forked from it, free, and take tensors up to 2 GiB from it.

    Otherwise arrays above 32 MB come from the system, and go back to it, every time that they are made, and the system
    clears their pages before it hands them out again: a third of the time of a network at 640 x 640. What is free at
    the end of the heap goes back from 2 GiB up, what is free below something in use does not.

    Returns
    -------
    bool
        Whether glibc accepted it. False for another C library, a glibc that allows no array above 32 MB in its heap,
        and where environment variables set up glibc's `malloc`; nothing has changed then.
    """
    is_set_up = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if is_set_up or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # In this order: either of them ends glibc's own adaptation, and only the first can be refused.
    return all(mallopt(option, _MOST) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
