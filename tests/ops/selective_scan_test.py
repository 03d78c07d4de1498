import pickle
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from direct_hifimamba.commands.info import describe
from direct_hifimamba.ops.selective_scan import BACKENDS, interface, resolve_backend, selective_scan
from direct_hifimamba.ops.selective_scan.reference import selective_scan_reference
from tests.ops.scan_cases import ScanInputs, make_inputs, relative_error


def test_oracle_is_the_sum_over_all_earlier_inputs() -> None:
    """The recurrence unrolled: y_t = sum over s <= t of C_t . exp(A (delta_{s+1} + ... + delta_t)) delta_s B_s u_s."""
    batch, channels, length, groups = 2, 4, 6, 2
    u, delta, A, B, C, D, z, bias = make_inputs(batch, channels, length, 3, groups, dtype=torch.float64)
    assert D is not None
    assert z is not None
    assert bias is not None
    expected = torch.zeros_like(u)
    for b in range(batch):
        for c in range(channels):
            g = c // (channels // groups)
            step = (1 + (delta[b, c] + bias[c]).exp()).log()
            for t in range(length):
                for s in range(t + 1):
                    decay = torch.exp(A[c] * step[s + 1 : t + 1].sum())
                    expected[b, c, t] += (C[b, g, :, t] * decay * step[s] * B[b, g, :, s] * u[b, c, s]).sum()
                expected[b, c, t] = (expected[b, c, t] + D[c] * u[b, c, t]) * z[b, c, t] / (1 + (-z[b, c, t]).exp())
    assert relative_error(selective_scan_reference(u, delta, A, B, C, D, z, bias, True), expected) < 1e-14


@pytest.mark.parametrize("optional", [True, False])
def test_oracle_gradcheck(optional: bool) -> None:
    inputs = make_inputs(1, 2, 4, 1, 2, optional=optional, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(selective_scan_reference, (*inputs, optional))


def test_oracle_backward_is_linear_in_the_length() -> None:
    class CountElements(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements += result.numel()
            return result

    counts = []
    for length in (50, 100):
        y = selective_scan_reference(*make_inputs(1, 2, length, 2, requires_grad=True), True)
        with CountElements() as count:
            y.sum().backward()
        counts.append(count.elements)
    assert counts[1] < 2.1 * counts[0]


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    """Output and gradients keep the arguments' dtype; only the rounding of the result to it is lost."""
    inputs = make_inputs(dtype=dtype, requires_grad=True)
    y = selective_scan(*inputs, True, backend=backend)
    y.sum().backward()
    assert y.dtype == dtype
    assert all(t.grad is not None and t.grad.dtype == dtype for t in inputs.tensors())
    expected = selective_scan_reference(*inputs.to(torch.float64), True)
    assert relative_error(y, expected) <= torch.finfo(dtype).eps * (8 if dtype.itemsize > 2 else 1)


def test_mixed_dtypes_compute_in_float32_and_return_that_of_u() -> None:
    inputs = make_inputs()
    mixed = inputs._replace(u=inputs.u.bfloat16(), B=inputs.B.half())
    expected = selective_scan(*(None if t is None else t.float() for t in mixed), True)
    assert torch.equal(selective_scan(*mixed, True), expected.bfloat16())


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_has_no_effect(backend: str) -> None:
    results = []
    for enabled in (False, True):
        inputs = make_inputs(requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = selective_scan(*inputs, True, backend=backend)
            y.square().sum().backward()
        results.append([y, *(t.grad for t in inputs.tensors())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_backends_run_outside_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(u: torch.Tensor, *_: Any) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return u

    monkeypatch.setattr(interface, "_load", lambda name: backend)
    with torch.autocast("cpu", torch.bfloat16):
        selective_scan(*make_inputs(), True, backend="torch")
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_matrices_without_a_group_axis(backend: str) -> None:
    inputs = make_inputs(groups=1)
    squeezed = inputs._replace(B=inputs.B.squeeze(1), C=inputs.C.squeeze(1))
    expected = selective_scan(*inputs, True, backend=backend)
    assert torch.equal(selective_scan(*squeezed, True, backend=backend), expected)


def test_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(selective_scan)) is selective_scan


def test_auto_falls_back_to_torch() -> None:
    assert resolve_backend("auto", torch.device("meta")) == "torch"
    assert resolve_backend("auto", torch.device("cuda"), torch.float64) == "torch"


@pytest.mark.parametrize("error", [RuntimeError("versions do not fit"), SystemExit(1), OSError("no library")], ids=repr)
def test_auto_survives_a_package_that_fails_in_any_way(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    class Broken(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] in ("mamba_ssm", "triton"):
                raise error

    for name in [*sys.modules]:
        if name.partition(".")[0] in ("mamba_ssm", "triton") or name.endswith((".mamba_ssm", ".triton_kernels")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(interface, "_loaded", {})
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    interface.unavailable_because.cache_clear()
    try:
        assert resolve_backend("auto", torch.device("cuda")) == "torch"
        with pytest.raises(RuntimeError, match=f"'mamba_ssm' is not available: .*{type(error).__name__}"):
            resolve_backend("mamba_ssm", torch.device("cuda"))
        assert f"mamba_ssm   not available: it cannot be imported ({type(error).__name__}" in describe()
    finally:
        interface.unavailable_because.cache_clear()


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=f"backend 'cuda'; expected one of {', '.join(BACKENDS)}"):
        selective_scan(*make_inputs(), backend="cuda")


@pytest.mark.parametrize("backend", ["mamba_ssm", "triton"])
def test_backend_for_another_device(backend: str) -> None:
    with pytest.raises(RuntimeError, match=f"'{backend}' is not available: it runs on cuda tensors only.*'auto'"):
        selective_scan(*make_inputs(), backend=backend)


@pytest.mark.parametrize(
    ("break_inputs", "message"),
    [
        (lambda x: x._replace(u=x.u[0]), r"u has shape \(6, 17\); expected a non-empty \(batch, channels, length\)"),
        (lambda x: x._replace(u=x.u[..., :0]), r"u has shape \(2, 6, 0\); expected a non-empty"),
        (lambda x: x._replace(A=x.A[:5]), r"A has shape \(5, 3\); expected \(channels, state\) with channels = 6"),
        (lambda x: x._replace(A=x.A[:, :0]), r"A has shape \(6, 0\)"),
        (lambda x: x._replace(A=x.A[0]), r"A has shape \(3,\)"),
        (lambda x: x._replace(B=x.B[0, 0]), r"B has shape \(3, 17\); expected \(batch, state, length\) or"),
        (lambda x: x._replace(B=x.B.repeat(1, 4, 1, 1)), r"B has shape \(2, 4, 3, 17\).*divides the 6 channels"),
        (lambda x: x._replace(B=x.B[:, :0]), r"B has shape \(2, 0, 3, 17\)"),
        (lambda x: x._replace(B=x.B[:, :, :2]), r"B has shape \(2, 1, 2, 17\).*= \(2, 1, 3, 17\)"),
        (
            lambda x: x._replace(C=x.C[..., :9]),
            r"C has shape \(2, 1, 3, 9\); expected the shape of B = \(2, 1, 3, 17\)",
        ),
        (lambda x: x._replace(C=x.C.repeat(1, 2, 1, 1)), r"C has shape \(2, 2, 3, 17\)"),
        (lambda x: x._replace(delta=x.delta[:1]), r"delta has shape \(1, 6, 17\); expected the shape of u"),
        (lambda x: x._replace(z=x.z[:, :1]), r"z has shape \(2, 1, 17\); expected the shape of u"),
        (lambda x: x._replace(D=x.D[:1]), r"D has shape \(1,\); expected \(channels,\) = \(6,\)"),
        (lambda x: x._replace(delta_bias=x.D[:, None]), r"delta_bias has shape \(6, 1\); expected \(channels,\)"),
        (lambda x: x._replace(z=x.z.to("meta")), "z is on meta and u on cpu; expected one device"),
    ],
)
def test_bad_shapes_and_devices(break_inputs: Callable[[ScanInputs], ScanInputs], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_scan(*break_inputs(make_inputs()))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_bad_dtypes(dtype: torch.dtype) -> None:
    inputs = make_inputs()
    with pytest.raises(TypeError, match=f"A is {dtype}; expected a real floating dtype"):
        selective_scan(*inputs._replace(A=inputs.A.to(dtype)))
