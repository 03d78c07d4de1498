from __future__ import annotations

import io
import math
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from direct.checkpointer import Checkpointer
from direct.data.transforms import fft2, ifft2
from direct.environment import initialize_models_from_config, load_models_into_environment_config
from omegaconf import OmegaConf
from torch import nn

from direct_hifimamba import cli
from direct_hifimamba.nn.hifimamba import hifimamba
from direct_hifimamba.nn.hifimamba.attention import ChannelAttention
from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config
from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2, HiFiMambaV2Output
from direct_hifimamba.nn.hifimamba.moe import Routing, watch_routing
from direct_hifimamba.nn.hifimamba.reference import (
    convert_checkpoint,
    convert_state_dict,
    from_reference,
    infer_options,
)
from tests.helpers import GOLDEN_NAMES, UNNORMALISED, Golden, assert_close, channels_last, golden, gradients, measure

# Modules of the reference -> modules here, in every block and outside of blocks.
BLOCK_MODULES = {
    "": "",
    ".ln_global": ".context_norm",
    ".self_attention_global": ".context",
    ".wl_block": ".sf_lap",
    ".cfcr": ".cross_frequency_routing",
    ".conv0": ".steering_bottleneck",
    ".conv1": ".high_bottleneck",
    ".ln_1": ".low_norm",
    ".ln_2": ".steering_norm",
    ".self_attention": ".selective_scan",
    ".moe_pre": ".mix",
    ".moe": ".moe",
    ".channel_attention": ".channel_attention",
}
OTHER_MODULES = {"patch_embed": "embedding", "layers.1": "stages.0", "layers.3": "stages.1", "norm": "norm"}
# The reference computes these with channels first.
CHANNELS_FIRST = (".wl_block", ".cfcr", ".conv0", ".conv1", ".channel_attention")


class Run:
    """One forward and backward pass on the reference's input, with everything that parity is checked on."""

    def __init__(self, values: Golden, backend: str) -> None:
        forward_operator, backward_operator = UNNORMALISED
        self.network = from_reference(values.below("sd/"), *UNNORMALISED, scan_backend=backend).eval()
        self.mask = values["mask"].unsqueeze(-1)
        self.outputs: dict[str, Any] = {}
        self.routings: dict[str, Routing] = {}

        image = channels_last(values["input"]).contiguous().requires_grad_()
        masked_kspace = forward_operator(image, dim=(1, 2)).unsqueeze(1) * self.mask
        unit_map = torch.view_as_real(torch.ones(masked_kspace.shape[:-1], dtype=torch.complex64))

        def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # The reference's attention applies its gate itself.
            self.outputs[name] = inputs[0] * output if isinstance(module, ChannelAttention) else output

        for name, module in self.network.named_modules():
            module.register_forward_hook(partial(record, name))
        with watch_routing(self.network, lambda block, routing: self.routings.update({block: routing})):
            self.output: HiFiMambaV2Output = self.network(masked_kspace, self.mask, unit_map)
        magnitude = self.output.image.norm(dim=-1)
        self.loss = (magnitude - values["target"][:, 0]).abs().mean() + 1e-3 * self.output.load_balancing_loss
        self.loss.backward()
        assert image.grad is not None
        self.input_gradient = image.grad

    def project(self, image: torch.Tensor) -> torch.Tensor:
        """The part of an image (batch, H, W, 2) that the sampled k-space shows."""
        forward_operator, backward_operator = UNNORMALISED
        return backward_operator(forward_operator(image, dim=(1, 2)) * self.mask[:, 0], dim=(1, 2))


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def values(request: pytest.FixtureRequest) -> Golden:
    return golden(request.param)


@pytest.fixture(scope="module", params=["reference", "torch"])
def run(request: pytest.FixtureRequest, values: Golden) -> Run:
    torch.set_num_threads(1)
    return Run(values, request.param)


@pytest.fixture
def state_dict() -> dict[str, torch.Tensor]:
    return golden(GOLDEN_NAMES[0]).below("sd/")


def test_experts_are_those_of_the_reference(values: Golden, run: Run) -> None:
    chosen = values.below("moe/")
    blocks = {name.removesuffix("/top1") for name in chosen if name.endswith("/top1")}
    assert len(blocks) == len(run.routings) == sum(values.meta["depths"])
    for block in blocks:
        ours = run.routings[re.sub(r"layers\.(\d+)", lambda match: f"stages.{int(match[1]) // 2}", block)]
        is_clear = chosen[f"{block}/margin"].flatten() > 1e-5
        assert is_clear.float().mean() > 0.99
        assert torch.equal(ours.experts[is_clear], chosen[f"{block}/top1"].flatten()[is_clear].long())


def test_output_is_that_of_the_reference(values: Golden, run: Run) -> None:
    assert_close(run.output.image, channels_last(values["output"]), 1e-5)
    torch.testing.assert_close(run.output.load_balancing_loss, values["balance_loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(run.loss, values["loss"], rtol=1e-6, atol=0)


def test_gradients_are_those_of_the_reference(values: Golden, run: Run) -> None:
    expected = convert_state_dict({k: v for k, v in values.below("grad/").items() if k != "input"})
    # Gradients that are zero but for round-off have no scale of their own: that of the bias of the last norm, for
    # instance. It adds to the image what repeats from patch to patch, and the few samples of k-space that such an image
    # has are all measured, so that data consistency takes them away.
    floor = 1e-7 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in gradients(run.network).items():
        assert gradient is not None
        if name not in expected:  # an expert without a pixel
            assert not gradient.any(), name
            continue
        tolerance = 1e-4 * expected[name].abs().max().item() + floor
        torch.testing.assert_close(
            gradient, expected[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert expected.keys() <= dict(run.network.named_parameters()).keys()
    without_gradient = set(convert_state_dict(dict.fromkeys(values.meta["params_without_grad"], torch.empty(0))))
    assert without_gradient == dict(run.network.named_parameters()).keys() - expected.keys()


def test_input_gradient_is_that_of_the_reference(values: Golden, run: Run) -> None:
    # The reference's input is an image, from which it takes the measured k-space; ours is that k-space, from which the
    # zero-filled image comes. So what k-space does not show of an image cannot have a gradient here.
    expected = channels_last(values["grad/input"])
    assert_close(run.input_gradient, run.project(expected), 1e-4)
    assert (run.project(expected) - expected).abs().max() > 0.1 * expected.abs().max()


def test_modules_give_what_those_of_the_reference_give() -> None:
    values = golden(GOLDEN_NAMES[0])
    run = Run(values, "torch")
    counterparts = dict(OTHER_MODULES)
    for stage in range(2):
        for theirs, ours in BLOCK_MODULES.items():
            counterparts[f"layers.{2 * stage}.blocks.0{theirs}"] = f"stages.{stage}.blocks.0{ours}"
    intermediate = values.below("im/")
    assert {key.rpartition("/")[0] for key in intermediate} == counterparts.keys()
    for key, expected in intermediate.items():
        module, _, which = key.rpartition("/")
        ours = run.outputs[counterparts[module]]
        if isinstance(ours, tuple):
            ours = ours[1 if which == "out_high" else 0]
        expected = channels_last(expected) if module.endswith(CHANNELS_FIRST) else expected
        ours = ours.reshape(expected.shape)  # what maps pixel by pixel may have got a list of pixels
        torch.testing.assert_close(
            ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item(), msg=lambda text, key=key: f"{key}: {text}"
        )


def test_sizes_are_inferred(values: Golden) -> None:
    options = infer_options(values.below("sd/"))
    assert options == {
        "hidden_channels": values.meta["hidden_dim"],
        "blocks_per_stage": tuple(values.meta["depths"]),
        "patch_size": values.meta["patch_size"],
        "state_size": values.meta["d_state"],
        "num_routed_experts": 4,
    }


def test_options_that_weights_do_not_show_are_passed_on(state_dict: dict[str, torch.Tensor]) -> None:
    network = from_reference(state_dict, fft2, ifft2, stochastic_depth=0.125, activation_checkpointing=True)
    assert network.training
    assert (network.config.stochastic_depth, network.config.activation_checkpointing) == (0.125, True)


def test_every_parameter_comes_from_the_state_dict(state_dict: dict[str, torch.Tensor]) -> None:
    noise = {name: torch.randn_like(value) for name, value in state_dict.items()}
    converted = convert_state_dict(noise)
    weights = from_reference(noise, fft2, ifft2).state_dict()
    assert weights.keys() == converted.keys()
    assert all(torch.equal(value, converted[name]) for name, value in weights.items())


def is_dead(name: str) -> bool:
    """Whether an entry of the reference's state_dict never acts on its output."""
    parts = name.split(".")
    return (
        not {"moe_post", "route_score", "out_norm", "usage_counts", "total_tokens", "k1d"}.isdisjoint(parts)
        or parts[:2] == ["last_dc", "patch_embed"]
    )  # fmt: skip


def test_names_that_never_act_and_only_these_are_ignored(state_dict: dict[str, torch.Tensor]) -> None:
    dead = {name for name in state_dict if is_dead(name)}
    assert len(dead) == 2 * (4 + 2 + 2 + 1) + 4
    for name, value in state_dict.items():
        assert bool(convert_state_dict({name: value})) != (name in dead), name
    from_reference({name: value for name, value in state_dict.items() if name not in dead}, fft2, ifft2)


@pytest.mark.parametrize(
    "name",
    [
        "extra.weight",
        "moe_post.weight",
        "layers.0.moe_post.weight",
        "layers.0.blocks.0.moe_post.scale",
        "last_dc.patch_embed.other.weight",
        "last_dc.norm.weight",  # not `norm.weight`
        "layers.1.blocks.0.ln_1.weight",  # not `layers.0.blocks.0.ln_1.weight`
        "layers.0.unpatchify.layer.weight",  # not `layers.1.unpatchify.layer.weight`
        "layers.0.blocks.0.conv2.block.0.weight",
        "layers.0.blocks.0.moe.experts.4.fc1.weight",
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_an_extra_key_is_an_error(state_dict: dict[str, torch.Tensor], name: str, last: bool) -> None:
    extra = {name: torch.zeros(32)}
    with pytest.raises(ValueError, match="1 keys of the state_dict do not fit: unknown: ") as error:
        from_reference(state_dict | extra if last else extra | state_dict, fft2, ifft2)
    assert name.rpartition(".")[2] in str(error.value)


def living(state_dict: dict[str, torch.Tensor]) -> list[str]:
    """Names of the reference that have to be there, of blocks that are alike only the second, of experts one."""
    return [name for name in state_dict if not is_dead(name) and not re.search(r"layers\.0\.b|experts\.[0-2]", name)]


@pytest.fixture
def _without_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the time that goes into weights which are overwritten."""
    monkeypatch.setattr(hifimamba, "initialise", lambda *_: None)


@pytest.mark.usefixtures("_without_initialisation")
def test_every_missing_key_is_an_error(state_dict: dict[str, torch.Tensor]) -> None:
    sizes_show_in = ["layers.0.blocks.0.self_attention.A_logs", "layers.0.blocks.0.moe.router.weight"]
    for name in [*living(state_dict), *sizes_show_in]:
        with pytest.raises(ValueError, match="state_dict") as error:
            from_reference({key: value for key, value in state_dict.items() if key != name}, fft2, ifft2)
        assert "missing: " in str(error.value) or f"has no {name}" in str(error.value)


@pytest.mark.usefixtures("_without_initialisation")
@pytest.mark.parametrize("resize", ["first axis", "last axis", "further axis"])
def test_every_wrong_shape_is_an_error(state_dict: dict[str, torch.Tensor], resize: str) -> None:
    axis = 0 if resize == "first axis" else -1
    for name in living(state_dict):
        value = state_dict[name]
        wrong = value[..., None] if resize == "further axis" or value.ndim == 0 else torch.cat([value] * 3, dim=axis)
        with pytest.raises(ValueError, match=r"keys of the state_dict do not fit|expected"):
            from_reference(state_dict | {name: wrong}, fft2, ifft2)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (32, 2)),
        ("patch_embed.proj.weight", (31, 2, 2, 2)),
        ("patch_embed.proj.weight", (0, 2, 2, 2)),
        ("layers.0.blocks.0.self_attention.A_logs", (8, 16)),
        ("layers.0.blocks.0.self_attention.A_logs", (64, 16)),
        ("layers.0.blocks.0.self_attention.conv_B.weight", (16, 1, 10)),
        ("layers.0.blocks.0.self_attention.conv_B.weight", (16, 11)),
        ("layers.0.blocks.0.self_attention.conv_dt.weight", (1, 1, 13)),
        ("layers.0.blocks.0.moe.router.weight", (5, 32)),
        ("layers.0.blocks.0.channel_attention.conv3x3.weight", (32, 1, 5, 5)),
        ("layers.2.blocks.0.self_attention.x_proj_weight_low", (33,)),
    ],
)
def test_contradictory_sizes_are_one_clear_error(
    state_dict: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"of the state_dict (do not fit|has shape)|expected"):
        from_reference(state_dict | {name: torch.zeros(shape)}, fft2, ifft2)


def test_all_problems_are_listed(state_dict: dict[str, torch.Tensor]) -> None:
    del state_dict["norm.weight"]
    state_dict["extra"] = torch.zeros(1)
    state_dict["norm.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match="3 keys") as error:
        from_reference(state_dict, fft2, ifft2)
    for problem in ("missing: norm.weight", "unknown: extra", "shape of norm.bias: (7,) instead of (32,)"):
        assert problem in str(error.value)


def test_our_own_state_dict_is_not_taken_for_the_reference(state_dict: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"has no patch_embed\.proj\.weight"):
        from_reference(convert_state_dict(state_dict), fft2, ifft2)


# Shapes of the reference: C hidden channels, c half of them, d inner channels of the scan, N states, r rank, p patch.
_BOTTLENECK = {
    "block.0.weight": "5*c, c, 1, 1",
    "block.1.weight": "5*c,",
    "block.1.bias": "5*c,",
    "block.3.weight": "5*c, 1, 3, 3",
    "block.4.weight": "5*c,",
    "block.4.bias": "5*c,",
    "block.6.weight": "c, 5*c, 1, 1",
}
_EXPERT = {"fc1.weight": "2*C, C", "fc1.bias": "2*C,", "fc2.weight": "C, 2*C", "fc2.bias": "C,"}
_EMBEDDING = {"proj.weight": "C, 2, p, p", "proj.bias": "C,", "norm.weight": "C,", "norm.bias": "C,"}
_BLOCK = (
    {f"{norm}.{part}": shape for norm, shape in {"ln_global": "C,", "ln_1": "c,", "ln_2": "c,"}.items()
     for part in ("weight", "bias")}
    | {f"{name}.{key}": shape for name in ("wl_block.conv", "conv0", "conv1") for key, shape in _BOTTLENECK.items()}
    | {f"moe.{name}.{key}": shape for name in ("shared.0", *(f"experts.{i}" for i in range(4)))
       for key, shape in _EXPERT.items()}
    | {
        "wl_block.reduce.k1d": "5,",
        "cfcr.log_gamma": "",
        "self_attention_global.fc.0.weight": "C//8, C",
        "self_attention_global.fc.2.weight": "C, C//8",
        "route_score.weight": "2, C, 1, 1",
        "route_score.bias": "2,",
        "moe.usage_counts": "4,",
        "moe.total_tokens": "1,",
        "moe.router.weight": "4, C",
        "moe.router.bias": "4,",
        "self_attention.x_proj_weight": "1, r+2*N, d",
        "self_attention.x_proj_weight_low": "1, r+2*N, d",
        "self_attention.dt_projs_weight": "1, d, r",
        "self_attention.dt_projs_bias": "1, d",
        "self_attention.A_logs": "d, N",
        "self_attention.Ds": "d,",
        "self_attention.in_proj.weight": "2*d, c",
        "self_attention.in_proj_low.weight": "d, c",
        "self_attention.conv2d.weight": "d, 1, 3, 3",
        "self_attention.conv2d.bias": "d,",
        "self_attention.conv_dt.weight": "r, 1, 11",
        "self_attention.conv_B.weight": "N, 1, 11",
        "self_attention.conv_C.weight": "N, 1, 11",
        "self_attention.simple_gate_b.fc1.weight": "12*N, N",
        "self_attention.simple_gate_b.fc2.weight": "N, 6*N",
        "self_attention.simple_gate_c.fc1.weight": "12*N, N",
        "self_attention.simple_gate_c.fc2.weight": "N, 6*N",
        "self_attention.out_norm.weight": "d,",
        "self_attention.out_norm.bias": "d,",
        "self_attention.out_proj.weight": "c, d",
        "moe_pre.weight": "C, 2*C",
        "moe_pre.bias": "C,",
        "moe_post.weight": "C, C",
        "moe_post.bias": "C,",
        "channel_attention.conv1x1.weight": "C, C, 1, 1",
        "channel_attention.conv1x1.bias": "C,",
        "channel_attention.conv3x3.weight": "C, 1, 3, 3",
        "channel_attention.conv3x3.bias": "C,",
    }
)  # fmt: skip
_BUFFERS = ("usage_counts", "total_tokens", "k1d")


def reference_shapes(hidden_channels: int, depths: tuple[int, ...], patch_size: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the reference's state_dict at any size."""
    half = hidden_channels // 2
    sizes = {"C": hidden_channels, "c": half, "d": 2 * half, "N": 16, "r": math.ceil(half / 16), "p": patch_size}
    shapes = {f"patch_embed.{key}": shape for key, shape in _EMBEDDING.items()}
    for stage, blocks in enumerate(depths):
        for block in range(blocks):
            shapes |= {f"layers.{2 * stage}.blocks.{block}.{key}": shape for key, shape in _BLOCK.items()}
        shapes |= {f"layers.{2 * stage + 1}.patch_embed.{key}": shape for key, shape in _EMBEDDING.items()}
        shapes[f"layers.{2 * stage + 1}.unpatchify.layer.weight"] = "2*p*p, C"
    shapes |= {f"last_dc.patch_embed.{key}": shape for key, shape in _EMBEDDING.items()}
    shapes |= {"last_dc.unpatchify.layer.weight": "2*p*p, C", "norm.weight": "C,", "norm.bias": "C,"}
    return {name: tuple(eval(f"({shape})", sizes)) for name, shape in shapes.items()}


def test_shapes_of_the_reference_are_known_at_any_size(values: Golden) -> None:
    shapes = reference_shapes(values.meta["hidden_dim"], values.meta["depths"], values.meta["patch_size"])
    assert shapes == {name: tuple(value.shape) for name, value in values.below("sd/").items()}


def test_every_parameter_of_the_full_size_is_accounted_for() -> None:
    reference = {
        name: torch.empty(shape, device="meta")
        for name, shape in reference_shapes(128, (2,) * 6, 2).items()
        if not name.endswith(_BUFFERS)
    }
    assert sum(value.numel() for value in reference.values()) == 7_140_580
    dead = sum(value.numel() for name, value in reference.items() if is_dead(name))
    unmet_taps = 8 / 9 * sum(v.numel() for k, v in reference.items() if k.endswith("channel_attention.conv3x3.weight"))
    unused_step_sizes = 4 / 36 * sum(v.numel() for k, v in reference.items() if k.endswith("x_proj_weight_low"))
    assert (dead, unmet_taps, unused_step_sizes) == (205_720, 8 * 128 * 12, 4 * 128 * 12)

    ours = dict(HiFiMambaV2(fft2, ifft2).named_parameters())
    assert sum(parameter.numel() for parameter in ours.values()) == 7_140_580 - 205_720 - 12_288 - 6_144 == 6_916_428
    converted = convert_state_dict(reference)
    assert {name: tuple(value.shape) for name, value in converted.items()} == {
        name: tuple(parameter.shape) for name, parameter in ours.items()
    }
    options = infer_options(reference)
    assert all(getattr(HiFiMambaV2Config(), name) == value for name, value in options.items())


def direct_model(config_path: Path) -> nn.Module:
    """The model that DIRECT builds from a configuration file."""
    models, models_config = load_models_into_environment_config(OmegaConf.load(config_path))
    cfg = OmegaConf.create({"model": models_config.model, "additional_models": {}})
    return initialize_models_from_config(cfg, models, fft2, ifft2, "cpu")[0]


@pytest.mark.parametrize("nesting", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_converted_checkpoint_is_loaded_by_direct(
    tmp_path: Path,
    state_dict: dict[str, torch.Tensor],
    nesting: str | None,
    prefix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, destination = tmp_path / "reference.pth", tmp_path / "model_0.pt"
    content = {prefix + name: value for name, value in state_dict.items()}
    torch.save({nesting: content, "epoch": 7} if nesting else content, source)
    cli.main(["convert-checkpoint", str(source), str(destination)])
    assert str(destination) in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pth", "model_0.pt", "model_0.yaml"}

    model = direct_model(tmp_path / "model_0.yaml")
    Checkpointer(save_directory=tmp_path, save_to_disk=False, model=model).load_models_from_file(destination)
    measurement = measure(coils=2, height=18, width=20)
    expected = from_reference(state_dict, fft2, ifft2).eval()(*measurement).image
    assert torch.equal(model.eval()(*measurement).image, expected)


@pytest.mark.parametrize("existing", ["model_0.pt", "model_0.yaml"])
def test_existing_files_are_kept(tmp_path: Path, state_dict: dict[str, torch.Tensor], existing: str) -> None:
    torch.save(state_dict, tmp_path / "reference.pth")
    (tmp_path / existing).write_text("mine")
    with pytest.raises(FileExistsError, match=existing):
        convert_checkpoint(tmp_path / "reference.pth", tmp_path / "model_0.pt")
    assert (tmp_path / existing).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pth", existing}


class Dangerous:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def cut_short() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(5000)}, buffer)
    return buffer.getvalue()[:5000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (cut_short(), "cannot be read"),
        (b"no checkpoint at all", "cannot be read"),
        (pickle.dumps({"model": 1})[:-3], "cannot be read"),
        (Dangerous(), "cannot be read as tensors alone"),
        ({"state_dict": Dangerous()}, "cannot be read as tensors alone"),
        ([torch.zeros(1)], "holds no state_dict"),
        ({"epoch": 3}, "holds no state_dict"),
        ({3: torch.zeros(1)}, "holds no state_dict"),
        ({}, r"has no patch_embed\.proj\.weight"),
        ({"weight": torch.zeros(1)}, r"has no patch_embed\.proj\.weight"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_the_reference_is_one_clear_error(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "reference.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "model_0.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.pth"]
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("missing.pth", "model_0.pt", "missing.pth"),
        (".", "model_0.pt", "directory"),
        ("reference.pth", "model_0.yaml", "expected another suffix"),
        ("reference.pth", "missing/model_0.pt", "missing"),
    ],
)
def test_wrong_paths_are_clear_errors(
    tmp_path: Path,
    state_dict: dict[str, torch.Tensor],
    source: str,
    destination: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(state_dict, tmp_path / "reference.pth")
    with pytest.raises(SystemExit) as error:
        cli.main(["convert-checkpoint", str(tmp_path / source), str(tmp_path / destination)])
    assert error.value.code == 2
    assert re.fullmatch(rf"direct-hifimamba: error: .*{message}.*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.pth"]


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, state_dict: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state_dict, tmp_path / "reference.pth")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(OmegaConf, "save", fail)  # the second of the two files
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(tmp_path / "reference.pth", tmp_path / "model_0.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.pth"]
