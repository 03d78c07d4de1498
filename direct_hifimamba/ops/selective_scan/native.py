"""Fused selective scan for CPUs: binding of the C++ kernel to PyTorch."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch

from direct_hifimamba.ops import library
from direct_hifimamba.ops.derivatives import gradients_of_definition, refuse_tangents
from direct_hifimamba.ops.selective_scan.arguments import ScanArguments
from direct_hifimamba.ops.selective_scan.reference import selective_scan_reference

if library.UNAVAILABLE_BECAUSE:
    raise ImportError(library.UNAVAILABLE_BECAUSE)

#: Least work of one thread, as product of channels, states and steps.
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


def _view(tensor: torch.Tensor | None, groups: int) -> _ViewStruct:
    """Return address and strides of (batch, channels, length) or (batch, groups, state, length); null for None."""
    if tensor is None:
        return _ViewStruct()
    if tensor.ndim == 3:
        tensor = tensor.unflatten(1, (groups, -1))
    return _ViewStruct(tensor.data_ptr(), *tensor.stride())


def _states_shape(u: torch.Tensor, B: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of the chunks' initial states, (batch, group, chunk, block, state, lane); see csrc/scan.h."""
    batch, groups, state, length = B.shape
    blocks = (u.shape[1] // groups + library.LANES - 1) // library.LANES
    return batch, groups, (length + library.STEPS - 1) // library.STEPS, blocks, state, library.LANES


def _run(function: str, scan: ScanArguments, **results: torch.Tensor | None) -> None:
    """Call the library with the arguments and `results` as the fields of `Scan` of these names."""
    tensors = {name: tensor for name, tensor in (scan._asdict() | results).items() if name != "delta_softplus"}
    refuse_tangents(*tensors.values())
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}; expected float32 on a CPU.")
    batch, groups, state, length = scan.B.shape
    channels = scan.u.shape[1]
    views = {field[0] for field in _ScanStruct._fields_ if field[1] is _ViewStruct}
    vectors = {
        name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items() if name not in views
    }
    struct = _ScanStruct(
        *(batch, groups, channels // groups, state, length, scan.delta_softplus),
        **{name: _view(tensors[name], groups) for name in views & tensors.keys()},
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in vectors.items()},
    )
    library.call(function, struct, batch * channels * state * length, _WORK_PER_THREAD)


_TENSORS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"  # of ScanArguments
)


@torch.library.custom_op(
    "direct_hifimamba::selective_scan",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_TENSORS}, bool delta_softplus, bool keep_states) -> (Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the states at the start of every chunk, which are empty unless `keep_states`."""
    *given, keep_states = arguments
    scan = ScanArguments(*given)
    scan.check()
    y, states = _forward_fake(*arguments)
    _run("scan_forward", scan, y=y, states=states if keep_states else None)
    return y, states


@_forward.register_fake
@library.on_one_device
def _forward_fake(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    u, B, keep_states = arguments[0], arguments[3], arguments[-1]
    return torch.empty_like(u), u.new_empty(_states_shape(u, B) if keep_states else (0,))


@torch.library.custom_op(
    "direct_hifimamba::selective_scan_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad_y, {_TENSORS}, Tensor states, bool delta_softplus) -> Tensor[]",
)
def _backward(grad_y: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """Return gradients of the arguments `u` to `delta_bias`; empty ones for those that are None."""
    *tensors, states, delta_softplus = arguments
    scan = ScanArguments._make((*tensors, delta_softplus))
    scan.check()
    u = scan.u
    for name, tensor, shape in (("grad_y", grad_y, u.shape), ("states", states, _states_shape(u, scan.B))):
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}.")
    grads = dict(zip(ScanArguments._fields, _backward_fake(grad_y, *arguments), strict=False))
    for shared in ("B", "C"):  # the kernel adds to them, channel by channel
        grads[shared].zero_()
    # One per sequence, summed below.
    shapes = {"A": scan.A.shape, "D": u.shape[1:2], "delta_bias": u.shape[1:2]}
    parts = {name: u.new_empty(len(u), *shape) for name, shape in shapes.items()}
    written = grads | parts | ({"z": None} if scan.z is None else {})
    _run(
        "scan_backward", scan, states=states, grad_y=grad_y, **{f"grad_{name}": part for name, part in written.items()}
    )
    for name, part in parts.items():
        if getattr(scan, name) is not None:
            grads[name] = part.sum(0)
    return list(grads.values())


@_backward.register_fake
@library.on_one_device
def _backward_fake(grad_y: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    return [grad_y.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in arguments[:8]]


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.delta_softplus, ctx.keep_states = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _autograd_backward(ctx, grad_y, grad_states):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        *tensors, _ = ctx.saved_tensors
        definition = partial(selective_scan_reference, delta_softplus=ctx.delta_softplus)
        return *gradients_of_definition(definition, tensors, grad_y), None, None
    if not ctx.keep_states:
        raise RuntimeError("The selective scan ran without keep_states and has no backward pass.")
    tensors = ctx.saved_tensors
    grads = _backward(grad_y, *tensors, ctx.delta_softplus)
    return *(None if t is None else grad for t, grad in zip(tensors[:-1], grads, strict=True)), None, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def selective_scan_native(*arguments: Any) -> torch.Tensor:
    """Compute the selective scan in one pass over the inputs, on the CPU in float32.

    The arguments are those of :class:`ScanArguments`. Any strides are read in place, fastest where channels (of `B`,
    `C`: states) are contiguous; output and gradients have the strides of their input. The result does not depend on the
    number of threads, which is that of PyTorch.
    """
    tensors = arguments[:8]
    keep_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, _ = _forward(*arguments, keep_states)
    return y
