import ctypes
import multiprocessing
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from direct_hifimamba.ops import library
from direct_hifimamba.ops.selective_scan import resolve_backend, selective_scan
from direct_hifimamba.ops.selective_scan.reference import selective_scan_reference
from tests.ops.scan_cases import ScanInputs, make_inputs, relative_error

native = pytest.importorskip(
    "direct_hifimamba.ops.selective_scan.native",
    reason="the C++ extension is not built: python setup.py build_ext --inplace",
    exc_type=ImportError,
)

CPU = torch.device("cpu")


def run(
    scan: Callable[..., torch.Tensor], inputs: ScanInputs, softplus: bool, grad_y: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Output and the gradients of all arguments that require one."""
    y = scan(*inputs, softplus)
    if grad_y is None:
        grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y, *torch.autograd.grad(y, [t for t in inputs.tensors() if t.requires_grad], grad_y.to(y.dtype))]


def check(inputs: ScanInputs, softplus: bool) -> None:
    """The native scan agrees with the float64 oracle and keeps the layout of every argument."""
    y, *grads = run(native.selective_scan_native, inputs, softplus)
    expected_y, *expected_grads = run(selective_scan_reference, inputs.to(torch.float64), softplus)
    assert relative_error(y, expected_y) < 1e-6
    assert y.stride() == torch.empty_like(inputs.u).stride()
    for name, argument in zip(inputs._fields, inputs, strict=True):
        if argument is not None:
            grad = grads.pop(0)
            assert relative_error(grad, expected_grads.pop(0)) < 5e-6, name
            assert grad.stride() == torch.empty_like(argument).stride(), name


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("batch", "channels", "groups", "length", "state"),
    [
        (1, 1, 1, 1, 1),
        (2, 16, 1, 2, 16),
        (1, 17, 1, 63, 8),
        (2, 32, 1, 64, 3),
        (1, 64, 2, 65, 16),
        (3, 6, 6, 130, 17),
        (1, 24, 3, 33, 64),
        (1, 80, 2, 200, 16),
    ],
)
@pytest.mark.usefixtures("instruction_set")
def test_agrees_with_oracle(layout: str, batch: int, channels: int, groups: int, length: int, state: int) -> None:
    for optional in (True, False):
        inputs = make_inputs(
            batch, channels, length, state, groups, optional=optional, layout=layout, requires_grad=True, seed=length
        )
        for softplus in (True, False):
            check(inputs, softplus)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.usefixtures("instruction_set")
def test_extreme_steps_and_decays(softplus: bool) -> None:
    """Steps from nothing to jumps after which the state is forgotten, decays from none to immediate."""
    inputs = make_inputs(1, 32, 150, 16, optional=False)
    values = torch.tensor(
        [-float("inf"), -110.0, -18.0, -1.0, 0.5, 19.9, 20.1, 50.0] if softplus else [0.0, 1e-8, 1e-3, 1.0, 50.0]
    )
    draw = torch.randint(len(values), inputs.delta.shape, generator=torch.Generator().manual_seed(2))
    decays = -torch.logspace(-8, 4, 32 * 16)
    inputs = inputs._replace(delta=values[draw], A=decays.view(32, 16))
    for t in inputs.tensors():
        t.requires_grad_()
    check(inputs, softplus)


@pytest.mark.parametrize(("value", "length"), [(0.0, 500), (1e-8, 65), (1e-3, 500), (50.0, 65)])
@pytest.mark.usefixtures("instruction_set")
def test_constant_step(value: float, length: int) -> None:
    """Equal steps add up equal errors of the decay: to 3e-6 here were the decay itself rounded to float32."""
    inputs = make_inputs(1, 16, length, 8, optional=False)
    inputs = inputs._replace(delta=torch.full_like(inputs.delta, value), A=-torch.logspace(-1, 4, 128).view(16, 8))
    for t in inputs.tensors():
        t.requires_grad_()
    check(inputs, softplus=False)


@pytest.mark.usefixtures("instruction_set")
def test_state_may_die_away() -> None:
    """After the last input the state passes the smallest normal number; nothing becomes NaN."""
    inputs = make_inputs(1, 16, 400, 16, optional=False)
    inputs.u[..., 1:] = 0
    inputs.delta.fill_(1.0)
    for t in inputs.tensors():
        t.requires_grad_()
    check(inputs, softplus=False)


@pytest.mark.usefixtures("instruction_set")
def test_far_beyond_the_range_of_exp() -> None:
    inputs = make_inputs(1, 16, 5, 4, optional=False)
    inputs.delta.fill_(1e6)
    inputs = inputs._replace(A=torch.full_like(inputs.A, -1e6))
    assert torch.equal(native.selective_scan_native(*inputs, False)[..., 1:].isfinite(), torch.ones(1, 16, 4).bool())
    assert relative_error(native.selective_scan_native(*inputs, False), selective_scan_reference(*inputs, False)) < 1e-6


@pytest.mark.usefixtures("instruction_set")
def test_nan_stays_nan() -> None:
    """One NaN in a channel's step spoils that channel from there on, and no other."""
    inputs = make_inputs(1, 20, 70, 16)
    inputs.delta[0, 3, 40] = float("nan")
    spoilt = native.selective_scan_native(*inputs, True).isnan()
    assert spoilt[0, 3, 40:].all()
    assert spoilt.sum() == 30


@pytest.mark.usefixtures("instruction_set")
def test_bitwise_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for batch, channels, groups in ((1, 96, 1), (2, 40, 2)):
        inputs = make_inputs(batch, channels, 700, 8, groups, requires_grad=True)
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            monkeypatch.setattr(library, "number_of_threads", lambda *_, threads=threads: threads)
            results.append(run(native.selective_scan_native, inputs, True))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.usefixtures("instruction_set")
def test_any_strides_give_the_same_bits() -> None:
    """Slices, parts of one projection, expanded arguments and an expanded gradient, against contiguous copies."""
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(2, 70, 3 * 16 + 2 * 5, generator=generator).movedim(1, 2)
    u, delta, z, B, C = projection.split([16, 16, 16, 5, 5], dim=1)
    A = -torch.rand(32, 10, generator=generator)[::2, ::2]
    D, bias = torch.randn(2, 16, generator=generator).expand(2, 16)
    sliced = ScanInputs(u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, z, bias)
    stepped = ScanInputs(*(t if t.ndim < 3 else t[..., ::3] for t in sliced.tensors()))
    expanded = sliced._replace(
        u=u[:1, :1].expand(2, 16, 70), z=z[..., :1].expand(2, 16, 70), B=sliced.B[:, :, :1].expand(2, 1, 5, 70)
    )
    for inputs in (sliced, stepped, expanded):
        leaves = ScanInputs(*(t.detach().requires_grad_() for t in inputs.tensors()))
        copies = ScanInputs(*(t.detach().clone(memory_format=torch.contiguous_format) for t in inputs.tensors()))
        for t in copies.tensors():
            t.requires_grad_()
        grad_y = torch.ones(()).expand(leaves.u.shape)
        results = run(native.selective_scan_native, leaves, True, grad_y)
        expected = run(native.selective_scan_native, copies, True, grad_y.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_one_tensor_in_several_places() -> None:
    inputs = make_inputs(1, 16, 70, 4, requires_grad=True)
    shared = inputs._replace(z=inputs.u, C=inputs.B, delta_bias=inputs.D)
    grads = torch.autograd.grad(native.selective_scan_native(*shared, True).sum(), (inputs.u, inputs.B, inputs.D))
    oracle = inputs.to(torch.float64)
    shared = oracle._replace(z=oracle.u, C=oracle.B, delta_bias=oracle.D)
    expected = torch.autograd.grad(selective_scan_reference(*shared, True).sum(), (oracle.u, oracle.B, oracle.D))
    for grad, value in zip(grads, expected, strict=True):
        assert relative_error(grad, value) < 5e-6


@pytest.mark.parametrize("only", ScanInputs._fields)
def test_gradient_of_one_argument_alone(only: str) -> None:
    inputs = make_inputs(2, 16, 70, 4, requires_grad=True)
    _, *all_grads = run(native.selective_scan_native, inputs, True)
    alone = ScanInputs(*(t.detach().requires_grad_(name == only) for name, t in zip(inputs._fields, inputs)))  # noqa: B905
    _, grad = run(native.selective_scan_native, alone, True)
    assert torch.equal(grad, all_grads[inputs._fields.index(only)])


def test_inputs_are_not_written_to() -> None:
    inputs = make_inputs(1, 20, 70, 4, requires_grad=True)
    before = [t.detach().clone() for t in inputs.tensors()]
    run(native.selective_scan_native, inputs, True)
    assert all(torch.equal(t, copy) for t, copy in zip(inputs.tensors(), before, strict=True))


def test_states_are_kept_for_backward_only() -> None:
    inputs = make_inputs(requires_grad=True)
    operator = torch.ops.direct_hifimamba.selective_scan
    with torch.no_grad():
        assert not native.selective_scan_native(*inputs, True).requires_grad
    y, states = operator(*inputs, True, False)
    assert states.numel() == 0
    with pytest.raises(RuntimeError, match="keep_states"):
        y.sum().backward()


@pytest.mark.parametrize("optional", [True, False])
def test_operator_registration(optional: bool) -> None:
    inputs = make_inputs(1, 6, 70, 3, 2, optional=optional, layout="channels_last", requires_grad=True)
    operators = torch.ops.direct_hifimamba
    torch.library.opcheck(operators.selective_scan.default, (*inputs, True, True))
    inputs = inputs.to(torch.float32)
    with torch.no_grad():
        y, states = operators.selective_scan(*inputs, True, True)
    arguments = (torch.ones_like(y), *(None if t is None else t.detach() for t in inputs), states, True)
    torch.library.opcheck(operators.selective_scan_backward.default, arguments)


@pytest.mark.parametrize("name", [*ScanInputs._fields, "grad_y", "states"])
def test_operators_refuse_sizes_that_do_not_fit(name: str) -> None:
    """What a caller of the operators themselves could get wrong, by which memory elsewhere would be read or written."""
    operators, errors = torch.ops.direct_hifimamba, (ValueError, TypeError, RuntimeError)
    given = dict(zip(ScanInputs._fields, make_inputs(2, 6, 70, 3, 2), strict=True))
    y, states = operators.selective_scan(*given.values(), True, True)
    given = {"grad_y": y, **given, "states": states}
    for axis in range(given[name].ndim):
        for size in (0, 1):
            for wrong in (given[name].narrow(axis, 0, size), given[name].select(axis, 0), given[name].double()):
                if (wrong.shape, wrong.dtype) == (given[name].shape, torch.float32):
                    continue
                changed = given | {name: wrong}
                with pytest.raises(errors, match="expected"):
                    operators.selective_scan_backward(*changed.values(), True)
                if name in ScanInputs._fields:
                    with pytest.raises(errors, match="expected"):
                        operators.selective_scan(*list(changed.values())[1:-1], True, True)
    with pytest.raises(ValueError, match="on cpu and meta; expected one device"):
        operators.selective_scan_backward(*(given | {name: given[name].to("meta")}).values(), True)


def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()  # other tests may have used up PyTorch's limit of compilations of a function
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    for length in (70, 71):
        inputs = make_inputs(length=length, requires_grad=True)
        expected = run(native.selective_scan_native, inputs, True)
        assert all(torch.equal(a, b) for a, b in zip(run(compiled, inputs, True), expected, strict=True))


class Scans(Dataset[torch.Tensor]):
    """One scan with its gradients per item; by the operators, as PyTorch's autograd does not survive every fork."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        inputs = make_inputs(1, 64, 300, 16, seed=index)
        y, states = torch.ops.direct_hifimamba.selective_scan(*inputs, True, True)
        grads = torch.ops.direct_hifimamba.selective_scan_backward(torch.ones_like(y), *inputs, states, True)
        return torch.cat([result.flatten() for result in (y, *grads)])


def test_forked_workers_may_use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by torch.set_num_threads: PyTorch's own threads do not survive a fork.
    monkeypatch.setattr(library, "number_of_threads", lambda *_: 3)
    dataset = Scans()
    expected = [dataset[i] for i in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))


def _scan_where_no_thread_starts(expected: torch.Tensor) -> None:
    libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(2**60))  # more than there are addresses
    libc.pthread_setattr_default_np(attributes)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threading.Thread(target=print).start()
    assert torch.equal(Scans()[0], expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the default size of stacks is set by a function of glibc")
def test_threads_that_do_not_start_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forked process, where the kernels start threads of their own."""
    monkeypatch.setattr(library, "number_of_threads", lambda *_: 3)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_scan_where_no_thread_starts, args=(Scans()[0],))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_auto_takes_it_for_float32_on_the_cpu() -> None:
    assert resolve_backend("auto", CPU) == "native"
    assert resolve_backend("auto", CPU, torch.float64) == "torch"
