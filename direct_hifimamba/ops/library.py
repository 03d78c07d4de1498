"""The compiled kernels for CPUs: how Python reaches the library that `csrc` is built into."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os

import torch

logger = logging.getLogger(__name__)

#: Environment variable that names the instruction set to use instead of the fastest one.
ISA_VARIABLE = "DIRECT_HIFIMAMBA_ISA"

_FUNCTIONS = (
    *("scan_forward", "scan_backward"),
    *("bottleneck", "experts", "depthwise", "sequence", "routing", "join"),
    *("expand_backward", "project_backward", "expert_backward"),
)


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none."""
    try:
        spec = importlib.util.find_spec(f"{__package__}._native")
        if spec is None or spec.origin is None:
            raise ImportError("the C++ extension was not built; reinstall the package with gcc or clang at hand")
        library = ctypes.CDLL(spec.origin)
        library.native_instruction_sets.restype = ctypes.c_char_p
        for name in _FUNCTIONS:
            getattr(library, f"native_{name}").argtypes = (
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_int,
                ctypes.c_int64,
            )
    except (ImportError, OSError, AttributeError) as error:  # the last: a library of another version
        logger.warning("No compiled kernels on the CPU, PyTorch takes their place and several times as long: %s", error)
        return None, str(error)
    return library, ""


_LIBRARY, UNAVAILABLE_BECAUSE = _load()
#: Instruction sets that the kernels were built for and this machine has, fastest first; none without the library.
INSTRUCTION_SETS: list[str] = _LIBRARY.native_instruction_sets().decode().split() if _LIBRARY else []
#: Channels that the scan takes side by side, its steps between stored states, and what the others need a multiple of.
LANES, STEPS, CHANNELS = (
    (_LIBRARY.native_scan_lanes(), _LIBRARY.native_scan_steps(), _LIBRARY.native_channels()) if _LIBRARY else (0, 0, 0)
)


def instruction_set() -> str:
    """The instruction set that the next call uses: the fastest one, or that of `ISA_VARIABLE`.

    Raises
    ------
    ValueError
        If the variable names one that does not exist here.
    """
    name = os.environ.get(ISA_VARIABLE) or INSTRUCTION_SETS[0]
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"{ISA_VARIABLE} is {name!r}; expected one of {', '.join(INSTRUCTION_SETS)}, or unset it.")
    return name


def number_of_threads(work: int, work_per_thread: int) -> int:
    """As many threads as PyTorch uses, or fewer where each would get less than `work_per_thread`."""
    return max(1, min(torch.get_num_threads(), work // work_per_thread))


def call(function: str, arguments: ctypes.Structure, work: int, work_per_thread: int) -> None:
    """Call `native_<function>` on :func:`number_of_threads`.

    Parameters
    ----------
    function : str
        Name in `_FUNCTIONS`.
    arguments : ctypes.Structure
        The C++ struct of that function, or the first of a list of them.
    work, work_per_thread : int
        Some measure of the work, and how much of it makes starting another thread pay.

    Raises
    ------
    MemoryError
        If the working memory could not be allocated.
    IndexError
        If an `index` among the arguments has rows that do not exist.
    RuntimeError
        If the library was built from other sources than these.
    """
    threads = number_of_threads(work, work_per_thread)
    run = getattr(_LIBRARY, f"native_{function}")
    status = run(ctypes.byref(arguments), ctypes.sizeof(arguments), INSTRUCTION_SETS.index(instruction_set()), threads)
    if status == 1:
        raise MemoryError(f"The kernel {function} could not allocate its working memory.")
    if status == 3:
        raise IndexError(f"index has rows that do not exist; expected 0 to {arguments.all_pixels - 1}.")
    if status:
        raise RuntimeError(
            "The compiled kernels are of another version than this package; reinstall it, or in a checkout run: "
            "python setup.py build_ext --inplace"
        )
