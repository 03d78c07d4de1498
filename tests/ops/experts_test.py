import pytest
import torch
from torch.nn import functional as F

from direct_hifimamba.ops import experts as module
from direct_hifimamba.ops import library
from direct_hifimamba.ops.experts import Assignment, ExpertWeights, sum_of_experts, sum_of_experts_definition


def make_experts(count: int, channels: int, hidden: int) -> list[ExpertWeights]:
    shapes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    return [ExpertWeights(*(torch.randn(shape).requires_grad_() for shape in shapes)) for _ in range(count)]


def make_assignments(pixels: int) -> list[Assignment]:
    """One expert has all pixels, one some, one a single one, one none."""
    order = torch.randperm(pixels)
    weights = [torch.rand(count).requires_grad_() for count in (pixels - 1, 1, 0)]
    return [Assignment(), *map(Assignment, (order[1:], order[:1], order[:0]), weights)]


def gradients(output: torch.Tensor, *sources: object) -> list[torch.Tensor]:
    tensors = [t for source in sources for t in (source if isinstance(source, tuple) else [source])]
    wanted = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(output, wanted, grad.to(output.dtype)))


def double(tensors):
    return [t if t is None or t.dtype == torch.int64 else t.detach().double().requires_grad_() for t in tensors]


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("first_has_all", [True, False])
@pytest.mark.parametrize(("pixels", "channels", "hidden"), [(2, 16, 16), (50, 48, 80), (300, 128, 256), (1000, 32, 48)])
def test_the_kernel_is_the_definition(pixels: int, channels: int, hidden: int, first_has_all: bool) -> None:
    experts, assignments = make_experts(4, channels, hidden), make_assignments(pixels)
    if not first_has_all:
        assignments = [assignments[1], assignments[0], *assignments[2:]]
    features = torch.randn(pixels, channels).requires_grad_()
    actual = sum_of_experts(features, experts, assignments)
    with torch.no_grad():
        assert torch.equal(sum_of_experts(features, experts, assignments), actual)
    exact_experts = [ExpertWeights(*double(expert)) for expert in experts]
    exact_assignments = [Assignment(*double(assignment)) for assignment in assignments]
    exact_features = features.detach().double().requires_grad_()
    exact = sum_of_experts(exact_features, exact_experts, exact_assignments)  # float64 takes the definition
    assert (actual - exact).abs().max() < 1e-6 * exact.abs().max()
    for a, e in zip(
        gradients(actual, features, *experts, *assignments),
        gradients(exact, exact_features, *exact_experts, *exact_assignments),
        strict=True,
    ):
        assert e.numel() == 0 or (a - e).abs().max() <= 3e-6 * e.abs().max()


def test_the_definition_is_the_sum_written_out() -> None:
    experts, assignments = make_experts(4, 3, 4), make_assignments(7)
    features = torch.randn(7, 3)
    expected = torch.zeros(7, 3)
    for (U, a, V, b), (pixels, weight) in zip(experts, assignments, strict=True):
        for place, pixel in enumerate(range(7) if pixels is None else pixels.tolist()):
            output = V @ F.gelu(U @ features[pixel] + a) + b
            expected[pixel] += output if weight is None else weight[place] * output
    torch.testing.assert_close(sum_of_experts_definition(features, experts, assignments), expected)


@pytest.mark.usefixtures("instruction_set")
def test_gelu_and_its_slope_everywhere() -> None:
    """The activation by itself: products with the identity leave the argument as it is."""
    magnitudes = torch.logspace(-40, 30, 16 * 50)
    x = torch.cat([torch.linspace(-12, 12, 16 * 997), magnitudes, -magnitudes[: 16 * 30]]).view(-1, 16).requires_grad_()
    identity, zeros = torch.eye(16), torch.zeros(16)
    activated = sum_of_experts(x, [ExpertWeights(identity, zeros, identity, zeros)], [Assignment()])
    exact_x = x.detach().double().requires_grad_()
    exact = F.gelu(exact_x)
    assert ((activated - exact).abs() <= 3e-7 * x.abs() + 1e-37).all()
    slope, exact_slope = (torch.autograd.grad(y.sum(), v)[0] for y, v in ((activated, x), (exact, exact_x)))
    assert (slope - exact_slope).abs().max() <= 2.5e-7


@pytest.mark.usefixtures("instruction_set")
def test_nan_stays_nan_and_in_its_pixel() -> None:
    (expert,), x = make_experts(1, 16, 32), torch.randn(20, 16)
    x[3, 5] = float("nan")
    x.requires_grad_()
    output = sum_of_experts(x, [expert], [Assignment()])
    assert torch.equal(output.isnan().any(1), torch.arange(20) == 3)
    grad_x, grad_expand = torch.autograd.grad(output.sum(), (x, expert.expand))
    assert torch.equal(grad_x.isnan().any(1), torch.arange(20) == 3)
    assert grad_expand.isnan().all()


@pytest.mark.usefixtures("instruction_set")
def test_bitwise_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, assignments, x = make_experts(4, 16, 48), make_assignments(2867), torch.randn(2867, 16).requires_grad_()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        monkeypatch.setattr(library, "number_of_threads", lambda *_, threads=threads: threads)
        output = sum_of_experts(x, experts, assignments)
        results.append([output, *gradients(output, x, *experts, *assignments)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.usefixtures("instruction_set")
def test_operators_are_registered_correctly() -> None:
    x, index = torch.randn(20, 16), torch.randperm(20)[:7]
    experts = [tensor.detach() for expert in make_experts(2, 16, 32) for tensor in expert]
    utilities = ("test_schema", "test_faketensor")
    arguments = (x, experts, [None, index], [None, torch.rand(7)])
    torch.library.opcheck(module._forward, arguments, test_utils=utilities)
    arguments = (torch.zeros(20, 16), x, x, *experts[:4], index, torch.rand(7))
    torch.library.opcheck(module._add_gradients, arguments, test_utils=utilities)


@pytest.mark.usefixtures("instruction_set")
def test_what_would_be_read_or_written_elsewhere_is_refused() -> None:
    x, index = torch.randn(9, 16), torch.arange(4)
    expert = [tensor.detach() for tensor in make_experts(1, 16, 32)[0]]

    def refused(message: str, x=x, expert=expert, index=None, weight=None, grad_x=None, grad=None) -> None:
        grad_x = torch.zeros_like(x) if grad_x is None else grad_x
        errors = (ValueError, TypeError, IndexError)
        if grad is None:
            with pytest.raises(errors, match=message):
                module._forward(x, expert, [index], [weight])
        with pytest.raises(errors, match=message):
            module._add_gradients(grad_x, x if grad is None else grad, x, *expert, index, weight)

    for place, name in enumerate(ExpertWeights._fields):
        for message, wrong in (
            (rf"{name} is \(1,\).*; expected|multiples of 16", torch.zeros(1)),
            (rf"{name} is torch\.float64; expected", expert[place].double()),
            ("on cpu and meta; expected one device", expert[place].to("meta")),
        ):
            refused(message, expert=[*expert[:place], wrong, *expert[place + 1 :]])
    refused(r"expand is \(32, 16\) on cpu; expected \(32, 32\)", x=torch.randn(9, 32))
    refused("multiples of 16 only", x=torch.randn(9, 12), expert=[t.detach() for t in make_experts(1, 12, 24)[0]])
    for wrong in ([0, 9], [-1]):
        refused(r"index has rows that do not exist; expected 0 to 8", index=torch.tensor(wrong))
    refused(r"index is torch\.int32; expected torch\.int64", index=index.int())
    refused(r"weight is \(3,\) on cpu; expected \(4,\)", index=index, weight=torch.rand(3))
    refused(r"grad is \(8, 16\)", grad=x[1:])
    for wrong in (expert[:3], [*expert, *expert]):
        with pytest.raises(ValueError, match=rf"There are {len(wrong)} parameters, 1 indices and 1 weights; expected"):
            module._forward(x, wrong, [None], [None])
    for wrong in (torch.zeros(9, 32), torch.zeros(16, 9).t()):
        with pytest.raises(ValueError, match="grad_x"):
            module._add_gradients(wrong, x, x, *expert, None, None)


def test_a_library_of_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    if not library.INSTRUCTION_SETS:
        pytest.skip("the C++ extension is not built")
    longer = library.struct("Expert", "all_pixels pixels channels hidden add", "x index weight U a V b out next more")
    monkeypatch.setattr(module, "_Expert", longer)
    with pytest.raises(RuntimeError, match="compiled kernels are of another version"):
        sum_of_experts(torch.randn(9, 16), make_experts(1, 16, 32), [Assignment()])


def test_the_kernel_keeps_nothing_but_its_arguments() -> None:
    if not library.INSTRUCTION_SETS:
        pytest.skip("the C++ extension is not built")
    experts, assignments = make_experts(4, 16, 32), make_assignments(500)
    features = torch.randn(500, 16).requires_grad_()
    given = {t.data_ptr() for t in (features, *(t for part in (*experts, *assignments) for t in part)) if t is not None}
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.data_ptr()) or t, lambda t: t):
        sum_of_experts(features, experts, assignments)
    assert kept <= given | {0}


def test_under_autocast_it_is_the_definition() -> None:
    experts, assignments = make_experts(2, 16, 32), [Assignment(), Assignment(torch.arange(3), torch.rand(3))]
    features = torch.randn(6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sum_of_experts(features, experts, assignments)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), sum_of_experts(features, experts, assignments), rtol=0.05, atol=0.5)


@pytest.mark.skipif(not library.INSTRUCTION_SETS, reason="plain PyTorch follows autocast in the backward pass")
def test_a_backward_pass_under_autocast_is_that_without() -> None:
    experts, assignments = make_experts(4, 16, 32), make_assignments(40)
    features = torch.randn(40, 16).requires_grad_()
    output = sum_of_experts(features, experts, assignments)
    expected = torch.autograd.grad(output.sum(), features, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.autograd.grad(output.sum(), features)[0], expected[0])


@pytest.mark.parametrize("channels", [4, 16])
def test_no_pixels_have_gradients_of_zero(channels: int) -> None:
    (expert,) = make_experts(1, channels, 16)
    features = torch.randn(0, channels).requires_grad_()
    output = sum_of_experts(features, [expert], [Assignment()])
    assert output.shape == (0, channels)
    assert all(not grad.any() for grad in torch.autograd.grad(output.sum(), [features, *expert]))


def test_no_experts_make_zeros() -> None:
    assert torch.equal(sum_of_experts(torch.randn(3, 2), [], []), torch.zeros(3, 2))
