"""Public function of the selective scan, and the choice of its backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch

from direct_hifimamba.ops.derivatives import are_transformed
from direct_hifimamba.ops.selective_scan.arguments import ScanArguments

Backend = Callable[..., torch.Tensor]


class _Entry(NamedTuple):
    """Function `selective_scan_<name>` in a module of this package, imported when it is first needed."""

    module: str
    device_type: str | None = None  # the only one it runs on
    dtype: torch.dtype | None = None  # the only one it computes in


_BACKENDS = MappingProxyType(
    {  # in the order that "auto" tries them
        "mamba_ssm": _Entry("mamba_ssm", device_type="cuda", dtype=torch.float32),
        "triton": _Entry("triton_kernels", device_type="cuda", dtype=torch.float32),
        "native": _Entry("native", device_type="cpu", dtype=torch.float32),
        "torch": _Entry("chunked"),
        "reference": _Entry("reference"),
    }
)
BACKENDS = ("auto", *_BACKENDS)


_loaded: dict[str, Backend] = {}


def _load(backend: str) -> Backend:
    # A dictionary because torch.compile would look through functools.cache and trace the import.
    if backend not in _loaded:
        module = importlib.import_module(f"{__package__}.{_BACKENDS[backend].module}")
        _loaded[backend] = getattr(module, f"selective_scan_{backend}")
    return _loaded[backend]


def device_type(backend: str) -> str | None:
    """The only type of device that `backend` runs on, or None."""
    return _BACKENDS[backend].device_type


@cache
def unavailable_because(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Return why `backend` cannot compute in `dtype` on tensors of `device_type`, or None if it can."""
    entry = _BACKENDS[backend]
    if entry.device_type not in (None, device_type):
        return f"it runs on {entry.device_type} tensors only, not on {device_type}"
    if entry.dtype not in (None, dtype):
        return f"it computes in {entry.dtype} only, not in {dtype}"
    try:
        _load(backend)
    except (Exception, SystemExit) as error:  # packages of versions that do not fit together raise anything
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        return f"it cannot be imported ({kind}{error})"
    return None


@torch.compiler.assume_constant_result  # torch.compile calls it instead of tracing the imports it tries
def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the backend that a name of `BACKENDS` means on `device`; "auto" is the first one that runs there.

    Raises
    ------
    ValueError
        If the name is unknown.
    RuntimeError
        If the backend was named explicitly and cannot run there; the reason is given.
    """
    if backend == "auto":
        return next(name for name in _BACKENDS if unavailable_because(name, device.type, dtype) is None)
    if backend not in _BACKENDS:
        raise ValueError(f"Unknown selective scan backend {backend!r}; expected one of {', '.join(BACKENDS)}.")
    reason = unavailable_because(backend, device.type, dtype)
    if reason is not None:
        raise RuntimeError(f"Selective scan backend {backend!r} is not available: {reason}. Use 'auto'.")
    return backend


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    r"""Selective state space scan of Mamba [1]_, arguments as in `mamba_ssm.ops.selective_scan_interface`.

    With :math:`\Delta = \mathrm{softplus}(\mathrm{delta} + \mathrm{delta\_bias})` and :math:`h_0 = 0`,

    .. math::
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \qquad
        y_t = \left(C_t \cdot h_t + D u_t\right) \mathrm{silu}(z_t).

    Parameters
    ----------
    u : torch.Tensor
        Input of shape (batch, channels, length). Any strides: a transposed (batch, length, channels) tensor is read
        in place where the backend can.
    delta : torch.Tensor
        Step size Delta before bias and softplus, shape of `u`.
    A : torch.Tensor
        State matrix (diagonal, negative for a stable scan) of shape (channels, state).
    B, C : torch.Tensor
        Input and output matrices of shape (batch, state, length), or (batch, groups, state, length) where group `g`
        serves the `g`-th run of channels / groups channels.
    D : torch.Tensor, optional
        Skip connection of shape (channels,).
    z : torch.Tensor, optional
        Gate, shape of `u`.
    delta_bias : torch.Tensor, optional
        Bias of `delta`, shape (channels,).
    delta_softplus : bool
        Apply softplus to `delta` plus bias. Default: False.
    backend : str
        One of `BACKENDS`. "auto" takes the fastest one that runs on the tensors' device. Default: "auto".

    Returns
    -------
    torch.Tensor
        Shape and dtype of `u`. Computed in float32, or in float64 where an argument is; autocast has no effect. Can be
        differentiated any number of times, in reverse and forward mode. All derivatives but the first gradient use the
        sequential definition, which is slow; mamba-ssm raises an error for them.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype, device or the backend's name does not fit.
    RuntimeError
        If the backend was named explicitly and cannot run here.

    References
    ----------
    .. [1] Gu, Dao. Mamba: Linear-Time Sequence Modeling with Selective State Spaces. arXiv:2312.00752.
    """
    if B.ndim == 3:
        B = B.unsqueeze(1)
    if C.ndim == 3:
        C = C.unsqueeze(1)
    arguments = ScanArguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    arguments.check()

    tensors = arguments.tensors
    dtype = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
    name = resolve_backend(backend, u.device, dtype)
    function = _load("reference" if are_transformed(tensors) else name)
    with torch.autocast(u.device.type, enabled=False):
        y = function(*(None if t is None else t.to(dtype) for t in tensors), delta_softplus)
    return y.to(u.dtype)
