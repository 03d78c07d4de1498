"""The adapter against mamba-ssm's Python code and a stand-in that insists on what its CUDA kernels insist on."""

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import pytest
import torch

from direct_hifimamba.ops.selective_scan import interface
from direct_hifimamba.ops.selective_scan.interface import resolve_backend
from direct_hifimamba.ops.selective_scan.reference import selective_scan_reference
from tests.ops.scan_cases import assert_matches_oracle, make_inputs

Scan = Callable[..., torch.Tensor]

MODULE = "mamba_ssm.ops.selective_scan_interface"
ADAPTER = "direct_hifimamba.ops.selective_scan.mamba_ssm"


def selective_scan_fn(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> torch.Tensor:
    batch, channels, length = u.shape
    state = A.shape[1]
    groups = B.shape[1]
    assert state <= 256
    assert delta.shape == u.shape
    assert A.shape == (channels, state)
    assert B.shape == C.shape == (batch, groups, state, length)
    assert channels % groups == 0
    assert z is None or z.shape == u.shape
    for vector in (D, delta_bias):
        assert vector is None or vector.shape == (channels,)
    for tensor in (u, delta, A, B, C, D, z, delta_bias):
        assert tensor is None or tensor.dtype == torch.float32
    assert delta_bias is None or delta_bias.stride(-1) == 1
    assert isinstance(delta_softplus, bool)
    assert not return_last_state
    return selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if nobody had asked for mamba-ssm yet, before the test and after it."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name == ADAPTER or name.split(".")[0] == "mamba_ssm"]

    before = {name: sys.modules.pop(name) for name in ours()}
    monkeypatch.setattr(interface, "_loaded", {})
    interface.unavailable_because.cache_clear()
    yield
    for name in ours():
        del sys.modules[name]
    sys.modules |= before
    interface.unavailable_because.cache_clear()


@pytest.fixture
def installed(nothing_loaded: None) -> None:
    """As if mamba-ssm were installed."""
    for name in ("mamba_ssm", "mamba_ssm.ops", MODULE):
        sys.modules[name] = ModuleType(name)
    sys.modules[MODULE].selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]


@pytest.fixture
def missing(nothing_loaded: None) -> None:
    """As if mamba-ssm were not installed."""
    sys.modules["mamba_ssm"] = None  # type: ignore[assignment]


@pytest.fixture
def scan(installed: None) -> Scan:
    return interface._load("mamba_ssm")


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("optional", "softplus"), [(True, True), (False, False), (True, False)])
def test_passes_every_argument_on(scan: Scan, layout: str, groups: int, optional: bool, softplus: bool) -> None:
    inputs = make_inputs(groups=groups, optional=optional, layout=layout, requires_grad=True)
    assert_matches_oracle(scan, inputs, softplus)


def test_accepts_a_bias_with_strides(scan: Scan) -> None:
    bias = torch.rand(12)[::2].requires_grad_()
    assert_matches_oracle(scan, make_inputs(channels=6)._replace(delta_bias=bias), True)


def test_second_derivatives_are_refused(scan: Scan) -> None:
    inputs = make_inputs(requires_grad=True)
    y = scan(*inputs, True)
    torch.autograd.grad(y.sum(), inputs.u, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*'torch'"):
        torch.autograd.grad(y.sum(), inputs.u, create_graph=True)


def test_large_state_is_refused(scan: Scan) -> None:
    with pytest.raises(ValueError, match=r"up to 256, got 257.*'torch'"):
        scan(*make_inputs(1, 1, 2, 257), True)


@pytest.mark.usefixtures("installed")
def test_chosen_for_cuda_tensors_in_float32_when_importable() -> None:
    assert resolve_backend("auto", torch.device("cuda")) == "mamba_ssm"
    assert resolve_backend("auto", torch.device("cuda"), torch.float64) == "torch"
    assert resolve_backend("mamba_ssm", torch.device("cuda")) == "mamba_ssm"
    with pytest.raises(RuntimeError, match=r"'mamba_ssm' is not available: it computes in torch\.float32 only"):
        resolve_backend("mamba_ssm", torch.device("cuda"), torch.float64)
    with pytest.raises(RuntimeError, match="'mamba_ssm' is not available: it runs on cuda tensors only"):
        resolve_backend("mamba_ssm", torch.device("cpu"))


@pytest.mark.usefixtures("nothing_loaded")
def test_a_package_that_fails_on_import_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(backend: str) -> Scan:
        raise RuntimeError("no driver")

    monkeypatch.setattr(interface, "_load", fail)
    reason = interface.unavailable_because("mamba_ssm", "cuda", torch.float32)
    assert reason == "it cannot be imported (RuntimeError: no driver)"


@pytest.mark.usefixtures("missing")
def test_not_chosen_when_not_importable() -> None:
    assert resolve_backend("auto", torch.device("cuda")) != "mamba_ssm"
    with pytest.raises(RuntimeError, match="'mamba_ssm' is not available: it cannot be imported"):
        resolve_backend("mamba_ssm", torch.device("cuda"))


@pytest.fixture
def source(nothing_loaded: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the installed package, without what it compiles and without its language models."""
    package = find_spec("mamba_ssm")
    if package is None:
        pytest.skip("mamba-ssm is not installed; make peers does it")
    kernels = ModuleType("selective_scan_cuda")
    kernels.fwd = _kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", kernels)
    sys.modules["mamba_ssm"] = module_from_spec(package)
    return import_module(MODULE)


def _kernel(*arguments: Any) -> tuple[torch.Tensor, ...]:
    """In place of the compiled forward pass: output, states, and the gated output if there is a gate."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = arguments
    for tensor in (u, delta, B, C, D, z, delta_bias):
        assert tensor is None or tensor.stride(-1) == 1
    gates = (None,) if z is None else (None, z)
    out, *gated = [selective_scan_fn(u, delta, A, B, C, D, gate, delta_bias, delta_softplus) for gate in gates]
    return out, torch.zeros(*u.shape[:2], 1, 2 * A.shape[1]), *gated


def test_the_stand_in_has_the_signature_of_the_package(source: ModuleType) -> None:
    real, own = (
        inspect.signature(function).parameters.values() for function in (source.selective_scan_fn, selective_scan_fn)
    )
    assert [(p.name, p.default) for p in real] == [(p.name, p.default) for p in own]


@pytest.mark.parametrize(("groups", "optional", "softplus"), [(1, True, True), (3, True, False), (2, False, True)])
def test_the_package_computes_what_is_expected(source: ModuleType, groups: int, optional: bool, softplus: bool) -> None:
    """Its own reference gives our values, and what it does before its kernels are called leaves the scan as it was."""
    inputs = make_inputs(groups=groups, optional=optional, layout="channels_last")
    expected = selective_scan_reference(*inputs, softplus)
    torch.testing.assert_close(source.selective_scan_ref(*inputs, softplus), expected)
    torch.testing.assert_close(interface._load("mamba_ssm")(*inputs, softplus), expected)
