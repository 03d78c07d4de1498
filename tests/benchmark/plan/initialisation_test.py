from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import compose_models
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.run.matrix import Benchmark, PlannedRun
from direct_hifimamba.reconstruction.engines import build_networks
from tests.benchmark.small_benchmark import write_specification

MODELS = {
    "U-Net": {"configs": ["unet.yaml"]},
    "full": {"configs": ["hifimamba.yaml"], "scaled_parameters": {"norm.*": 3}},
    "no state space": {
        "configs": ["hifimamba.yaml"],
        "overrides": ["model.state_space=false"],
        "initial_weights": "full",
        "scaled_parameters": {"norm.*": 0.5},
    },
}


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    (tmp_path / "data").mkdir()
    path = write_specification(tmp_path, models=MODELS)
    specification = Specification.load(path)
    return Benchmark(path, specification, compose_models(specification), BenchmarkFolder(tmp_path / "out"))


def begin(benchmark: Benchmark, label: str) -> dict[str, torch.Tensor]:
    """Weights with which a training of seed 3 begins."""
    run = benchmark.make_run(PlannedRun(label, "cell", label, seed=3, learning_rate=None))
    assert run.initialisation is not None
    path = benchmark.folder.path / f"{label}.pt"
    path.parent.mkdir(exist_ok=True)
    run.initialisation.write(path, run.config, run.seed)
    return torch.load(path)["model"]


def draw(config: DictConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return build_networks(config).model.state_dict()


def test_weights_are_those_of_the_seed_but_for_the_factors(benchmark: Benchmark) -> None:
    config = benchmark.configs["U-Net"]["equispaced_4x"]
    path = benchmark.folder.path.with_name("weights.pt")
    Initialisation({"unet.conv_out.*": 0.02}).write(path, config, seed=3)
    expected = draw(config)
    weights = torch.load(path)["model"]
    assert weights.keys() == expected.keys()
    scaled = [name for name in weights if name.startswith("unet.conv_out.")]
    assert scaled
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], 0.02 * value if name in scaled else value)
    with pytest.raises(ValueError, match=r"pattern 'unet\.conv_uot\.\*', which fits none"):
        Initialisation({"unet.conv_uot.*": 0.02}).write(path, config, seed=3)


def test_models_begin_with_the_same_weights_where_asked_to(benchmark: Benchmark) -> None:
    full, without = begin(benchmark, "full"), begin(benchmark, "no state space")
    own = draw(benchmark.configs["no state space"]["equispaced_4x"])
    assert without.keys() == own.keys()
    common = {name for name in without if full[name].shape == without[name].shape}
    assert not common.issuperset(without)  # the mixing layer has no inputs of the scan
    for name, weight in without.items():
        if name.startswith("norm."):
            torch.testing.assert_close(weight, full[name] / 6)
        else:
            torch.testing.assert_close(weight, full[name] if name in common else own[name], rtol=0, atol=0)
    # Which would not be so otherwise.
    assert any(not torch.equal(own[name], full[name]) for name in common if not name.startswith("norm."))
