"""Fused selective scan for CPUs: the binding of the C++ kernel in `csrc` to PyTorch."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os

import torch

logger = logging.getLogger(__name__)

#: Environment variable that names the instruction set to use instead of the fastest one.
ISA_VARIABLE = "DIRECT_HIFIMAMBA_ISA"
#: Work of one thread, in products of channels, states and steps, below which starting it does not pay.
_WORK_PER_THREAD = 250_000


class _ViewStruct(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "group", "row", "time"))]


class _ScanStruct(ctypes.Structure):
    """`Scan` of csrc/scan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "groups", "channels", "state", "length", "softplus")),
        *((name, _ViewStruct) for name in ("u", "delta", "B", "C", "z")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias")),
        ("y", _ViewStruct),
        ("states", ctypes.c_void_p),
        *((name, _ViewStruct) for name in ("grad_y", "grad_u", "grad_delta", "grad_B", "grad_C", "grad_z")),
        *((name, ctypes.c_void_p) for name in ("grad_A", "grad_D", "grad_delta_bias")),
    ]


def _load_library() -> ctypes.CDLL:
    """The compiled extension, or an ImportError if it was not built or cannot be loaded."""
    try:
        spec = importlib.util.find_spec(f"{__package__}._native")
        if spec is None or spec.origin is None:
            raise ImportError("the C++ extension was not built; reinstall the package with gcc or clang at hand")
        library = ctypes.CDLL(spec.origin)
        library.selective_scan_instruction_sets.restype = ctypes.c_char_p
        for function in (library.selective_scan_forward, library.selective_scan_backward):
            function.argtypes = (ctypes.POINTER(_ScanStruct), ctypes.c_int, ctypes.c_int64)
    except (ImportError, OSError, AttributeError) as error:  # the last: a library of another version
        logger.warning(
            "No fused selective scan on the CPU, PyTorch takes its place and several times as long: %s", error
        )
        raise ImportError(str(error)) from error
    return library


_LIBRARY = _load_library()
_LANES: int = _LIBRARY.selective_scan_lanes()
_STEPS: int = _LIBRARY.selective_scan_steps()
#: Instruction sets that the kernel was built for and this machine has, fastest first.
INSTRUCTION_SETS: list[str] = _LIBRARY.selective_scan_instruction_sets().decode().split()


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


def _number_of_threads(work: int) -> int:
    return max(1, min(torch.get_num_threads(), work // _WORK_PER_THREAD))


def _view(tensor: torch.Tensor | None, groups: int) -> _ViewStruct:
    """(batch, channels, length) or (batch, groups, state, length) as the kernel addresses it; null for None."""
    if tensor is None:
        return _ViewStruct()
    if tensor.ndim == 3:
        tensor = tensor.unflatten(1, (groups, -1))
    return _ViewStruct(tensor.data_ptr(), *tensor.stride())


def _states_shape(u: torch.Tensor, B: torch.Tensor) -> tuple[int, ...]:
    """Shape of the states at the start of every chunk: (batch, group, chunk, block, state, lane), see csrc/scan.h."""
    batch, groups, state, length = B.shape
    blocks = (u.shape[1] // groups + _LANES - 1) // _LANES
    return batch, groups, (length + _STEPS - 1) // _STEPS, blocks, state, _LANES


def _run(
    function: str, delta_softplus: bool, views: dict[str, torch.Tensor | None], vectors: dict[str, torch.Tensor | None]
) -> None:
    """Call the library with the tensors as the fields of `Scan` of these names."""
    u, B = views["u"], views["B"]
    assert u is not None and B is not None
    vectors = {name: None if tensor is None else tensor.contiguous() for name, tensor in vectors.items()}
    batch, groups, state, length = B.shape
    channels = u.shape[1]
    scan = _ScanStruct(
        *(batch, groups, channels // groups, state, length, delta_softplus),
        **{name: _view(tensor, groups) for name, tensor in views.items()},
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in vectors.items()},
    )
    threads = _number_of_threads(batch * channels * state * length)
    if getattr(_LIBRARY, function)(scan, INSTRUCTION_SETS.index(instruction_set()), threads):
        raise MemoryError("The selective scan could not allocate its working memory.")


@torch.library.custom_op("direct_hifimamba::selective_scan", mutates_args=(), device_types="cpu")
def _forward(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
    keep_states: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the states at the start of every chunk, empty unless they are to be kept for backward."""
    y, states = _forward_fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states)
    _run(
        "selective_scan_forward",
        delta_softplus,
        {"u": u, "delta": delta, "B": B, "C": C, "z": z, "y": y},
        {"A": A, "D": D, "delta_bias": delta_bias, "states": states if keep_states else None},
    )
    return y, states


@_forward.register_fake
def _forward_fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):  # type: ignore[no-untyped-def]
    return torch.empty_like(u), u.new_empty(_states_shape(u, B) if keep_states else (0,))


@torch.library.custom_op("direct_hifimamba::selective_scan_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_y: torch.Tensor,
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    states: torch.Tensor,
    delta_softplus: bool,
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:
    """Gradients of `u` to `delta_bias`; those of arguments that are None are empty."""
    grads = _backward_fake(grad_y, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus)
    grad_u, grad_delta, _, grad_B, grad_C, _, grad_z, _ = grads
    for shared in (grad_B, grad_C):  # sums over channels
        shared.zero_()
    # Per sequence, summed below.
    grad_A = u.new_empty(len(u), *A.shape)
    grad_D, grad_delta_bias = u.new_empty(2, *u.shape[:2])
    views = {"u": u, "delta": delta, "B": B, "C": C, "z": z, "grad_y": grad_y}
    views |= {"grad_u": grad_u, "grad_delta": grad_delta, "grad_B": grad_B, "grad_C": grad_C}
    views |= {"grad_z": None if z is None else grad_z}
    vectors = {"A": A, "D": D, "delta_bias": delta_bias, "states": states}
    vectors |= {"grad_A": grad_A, "grad_D": grad_D, "grad_delta_bias": grad_delta_bias}
    _run("selective_scan_backward", delta_softplus, views, vectors)
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0),
        grad_B,
        grad_C,
        grad_D.new_empty(0) if D is None else grad_D.sum(0),
        grad_z,
        grad_D.new_empty(0) if delta_bias is None else grad_delta_bias.sum(0),
    )


@_backward.register_fake
def _backward_fake(grad_y, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus):  # type: ignore[no-untyped-def]
    return tuple(u.new_empty(0) if t is None else torch.empty_like(t) for t in (u, delta, A, B, C, D, z, delta_bias))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.delta_softplus, ctx.keep_states = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _autograd_backward(ctx, grad_y, grad_states):  # type: ignore[no-untyped-def]
    if not ctx.keep_states:
        raise RuntimeError("The selective scan ran without keep_states and so has no backward.")
    tensors = ctx.saved_tensors
    grads = _backward(grad_y, *tensors, ctx.delta_softplus)
    return *(None if t is None else grad for t, grad in zip(tensors[:-1], grads, strict=True)), None, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def selective_scan_native(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
) -> torch.Tensor:
    """Selective scan in one pass over the inputs, on the CPU in float32.

    Shapes are those of :func:`direct_hifimamba.ops.selective_scan.selective_scan` with `B` and `C` of shape
    (batch, groups, state, length). Any strides are read in place, fastest where channels (of `B`, `C`: states) are
    contiguous; output and gradients have the strides of their input. The result does not depend on the number of
    threads, which is that of PyTorch.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    keep_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, _ = _forward(*tensors, delta_softplus, keep_states)
    return y
