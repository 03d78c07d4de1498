"""Interface to the compiled kernels for CPUs, a library that is built from `csrc`."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import torch

from direct_hifimamba.ops.derivatives import are_transformed, refuse_tangents

logger = logging.getLogger(__name__)

#: Environment variable that names the instruction set to use instead of the fastest one.
ISA_VARIABLE = "DIRECT_HIFIMAMBA_ISA"

_FUNCTIONS = (
    *("scan_forward", "scan_backward", "bottleneck", "experts"),
    *("expand_backward", "project_backward", "expert_backward"),
)
#: Arguments of each: a struct, its size, the place of the instruction set, threads.
_ARGUMENTS = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int64)
#: Multiply-accumulates below which starting another thread does not pay.
_WORK_PER_THREAD = 500_000
#: Largest number of parts in which backward passes sum over pixels, and smallest number of pixels per part; they do not
#: depend on the number of threads, so that results do not either.
_PARTS, _PIXELS_PER_PART = 8, 256


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason why it is missing."""
    try:
        spec = importlib.util.find_spec(f"{__package__}._native")
        if spec is None or spec.origin is None:
            raise ImportError(
                "the C++ extension was not built; install gcc or clang, then this package with pip's --no-cache-dir"
            )
        library = ctypes.CDLL(spec.origin)
        library.native_instruction_sets.restype = ctypes.c_char_p
        for name in _FUNCTIONS:
            getattr(library, f"native_{name}").argtypes = _ARGUMENTS
    except (ImportError, OSError, AttributeError) as error:  # the last: a library of another version
        logger.warning(
            "The compiled kernels for CPUs are missing; PyTorch replaces them and takes several times as long: %s",
            error,
        )
        return None, str(error)
    return library, ""


_LIBRARY, UNAVAILABLE_BECAUSE = _load()
#: Instruction sets of the kernels that this machine has, fastest first; empty without the library.
INSTRUCTION_SETS: list[str] = _LIBRARY.native_instruction_sets().decode().split() if _LIBRARY else []
#: Channels that the scan processes together; its steps between stored states; and the number whose multiples the other
#: kernels accept as channels.
LANES, STEPS, CHANNELS = (
    (_LIBRARY.native_scan_lanes(), _LIBRARY.native_scan_steps(), _LIBRARY.native_channels()) if _LIBRARY else (0, 0, 0)
)

_definitions_only: ContextVar[bool] = ContextVar("definitions_only", default=False)


@contextmanager
def definitions_only() -> Iterator[None]:
    """Compute bottlenecks and experts by their definitions within this context, without compiled kernels."""
    token = _definitions_only.set(True)
    try:
        yield
    finally:
        _definitions_only.reset(token)


def native_kernel_applies(tensors: Sequence[torch.Tensor], channels: Sequence[int]) -> bool:
    """Return whether the kernels of bottlenecks and experts accept `tensors` and these numbers of channels now."""
    return (
        CHANNELS > 0
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and all(count > 0 and count % CHANNELS == 0 for count in channels)
        and not torch.is_autocast_enabled("cpu")
        and not _definitions_only.get()
        and not are_transformed(tensors)
    )


def instruction_set() -> str:
    """Return the instruction set that the next call uses: the fastest one, or that of `ISA_VARIABLE`.

    Raises
    ------
    ValueError
        If the variable names one that this machine or the library does not have.
    """
    name = os.environ.get(ISA_VARIABLE) or INSTRUCTION_SETS[0]
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"{ISA_VARIABLE} is {name!r}; expected one of {', '.join(INSTRUCTION_SETS)}, or unset it.")
    return name


def number_of_threads(work: int, work_per_thread: int) -> int:
    """Return the number of PyTorch's threads, or fewer so that each gets at least `work_per_thread`."""
    return max(1, min(torch.get_num_threads(), work // work_per_thread))


def struct(name: str, integers: str, pointers: str) -> type[ctypes.Structure]:
    """Return the type of the C++ struct `name` of integers, then pointers; their names are separated by spaces."""
    fields = [
        *((field, ctypes.c_int64) for field in integers.split()),
        *((field, ctypes.c_void_p) for field in pointers.split()),
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Return the address of a contiguous tensor's values, None for None; the caller keeps the tensor alive.

    Raises
    ------
    ValueError
        If the tensor is not contiguous.
    """
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"A tensor of strides {tensor.stride()} was given to a kernel; expected a contiguous one.")
    return tensor.data_ptr()


def checked(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return a tensor as contiguous one, copied if necessary, after checking it.

    Raises
    ------
    TypeError
        If it has another dtype.
    ValueError
        If it has another shape or is not on a CPU.
    NotImplementedError
        If it carries a forward-mode tangent.
    """
    refuse_tangents(tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; expected {dtype}.")
    if tuple(tensor.shape) != shape or tensor.device.type != "cpu":
        raise ValueError(f"{name} is {tuple(tensor.shape)} on {tensor.device}; expected {shape} on a CPU.")
    return tensor.contiguous()


def on_one_device[**Arguments, Result](fake: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a fake implementation of an operator refuse tensors on several devices.

    PyTorch calls the fake implementation as soon as one of the tensors is on the meta device, and would return memory
    without values where others are not.
    """

    @wraps(fake)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        flat = [each for part in args for each in (part if isinstance(part, list | tuple) else [part])]
        devices = {str(each.device) for each in flat if isinstance(each, torch.Tensor)}
        if len(devices) > 1:
            raise ValueError(f"The tensors are on {' and '.join(sorted(devices))}; expected one device.")
        return fake(*args, **kwargs)

    return call


def check_channels(**channels: int) -> None:
    """Raise a ValueError unless these are multiples of `CHANNELS`."""
    for name, count in channels.items():
        if CHANNELS == 0 or count == 0 or count % CHANNELS:
            raise ValueError(f"There are {count} {name}; the compiled kernels take multiples of {CHANNELS or 16} only.")


def new_sums(like: torch.Tensor, pixels: int, floats: int) -> torch.Tensor:
    """Return memory for the sums of each part of the pixels, (parts, floats), of the dtype of `like`."""
    return like.new_empty(max(1, min(_PARTS, pixels // _PIXELS_PER_PART)), floats)


def add_up(sums: torch.Tensor, *shapes: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Yield the sums over the parts, added in their order, as tensors of these shapes."""
    for parts, shape in zip(sums.split([math.prod(shape) for shape in shapes], dim=1), shapes, strict=True):
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        yield total.view(shape)


def call(function: str, arguments: ctypes.Structure, work: int, work_per_thread: int = _WORK_PER_THREAD) -> None:
    """Call `native_<function>` on :func:`number_of_threads`.

    Parameters
    ----------
    function : str
        Name in `_FUNCTIONS`.
    arguments : ctypes.Structure
        The C++ struct of that function, or the first of a list of them.
    work, work_per_thread : int
        Work in any unit, and the least amount of it for which another thread is started.

    Raises
    ------
    MemoryError
        If the working memory could not be allocated.
    IndexError
        If an `index` among the arguments names rows that do not exist.
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
