"""Conversion of weights of the authors' research code to names and shapes of this package."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from errno import EINVAL
from pathlib import Path
from typing import Any

import torch
from direct.data.transforms import fft2, ifft2
from direct.types import FFTOperator
from omegaconf import OmegaConf

from direct_hifimamba.files import replace_when_complete
from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2

# Parameters of the reference without effect, its usage counters and its fixed filters.
_DROPPED = re.compile(
    r"layers\.\d+\.blocks\.\d+\.("
    r"(moe_post|route_score|self_attention\.out_norm)\.(weight|bias)"
    r"|moe\.(usage_counts|total_tokens)"
    r"|wl_block\.reduce\.k1d)"
    r"|last_dc\.patch_embed\.(proj|norm)\.(weight|bias)"
)


def _stage(layer: re.Match[str]) -> str:
    return f"stages.{int(layer[1]) // 2}."


# Regular expression of the reference's name -> name here, applied in order. Stages of blocks are layers 0, 2, 4 ...,
# the data consistency after each is the next odd layer.
_RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^layers\.(\d*[02468])\.(?=blocks\.)", _stage),
    (r"^layers\.(\d*[13579])\.(?=unpatchify\.|patch_embed\.)", _stage),
    (r"^last_dc\.(?=unpatchify\.)", ""),
    (r"unpatchify\.layer", "update.prediction.projection"),
    (r"patch_embed\.proj", "embedding.projection"),
    (r"patch_embed\.norm", "embedding.norm"),
    (r"ln_global", "context_norm"),
    (r"self_attention_global\.fc\.0", "context.squeeze"),
    (r"self_attention_global\.fc\.2", "context.excite"),
    (r"wl_block\.conv", "sf_lap.bottleneck"),
    (r"conv0\.block", "steering_bottleneck.block"),
    (r"conv1\.block", "high_bottleneck.block"),
    (r"bottleneck\.block\.0", "bottleneck.expand"),
    (r"bottleneck\.block\.1", "bottleneck.expand_norm"),
    (r"bottleneck\.block\.3", "bottleneck.depthwise"),
    (r"bottleneck\.block\.4", "bottleneck.depthwise_norm"),
    (r"bottleneck\.block\.6", "bottleneck.project"),
    (r"cfcr", "cross_frequency_routing"),
    (r"ln_1", "low_norm"),
    (r"ln_2", "steering_norm"),
    (r"self_attention\.in_proj_low", "selective_scan.steering_input_projection"),
    (r"self_attention\.in_proj", "selective_scan.input_projection"),
    (r"self_attention\.conv2d", "selective_scan.depthwise"),
    (r"self_attention\.x_proj_weight_low", "selective_scan.steering_matrix_projection"),
    (r"self_attention\.x_proj_weight", "selective_scan.matrix_projection"),
    (r"self_attention\.simple_gate_([bc])\.fc1", r"selective_scan.steering_gate_\1.expand"),
    (r"self_attention\.simple_gate_([bc])\.fc2", r"selective_scan.steering_gate_\1.project"),
    (r"self_attention\.dt_projs_weight", "selective_scan.step_size_projection"),
    (r"self_attention\.dt_projs_bias", "selective_scan.step_size_bias"),
    (r"self_attention\.A_logs", "selective_scan.A_log"),
    (r"self_attention\.Ds", "selective_scan.D"),
    (r"self_attention\.out_proj", "selective_scan.output_projection"),
    (r"self_attention\.conv_(dt|B|C)", r"selective_scan.sequence_convolution_\1"),
    (r"moe_pre", "mix"),
    (r"moe\.router", "moe.routed.router.projection"),
    (r"moe\.experts", "moe.routed.experts"),
    (r"(moe\..*)\.fc1", r"\1.expand"),
    (r"(moe\..*)\.fc2", r"\1.project"),
    (r"channel_attention\.conv1x1", "channel_attention.pointwise"),
    (r"channel_attention\.conv3x3\.weight", "channel_attention.scale"),
    (r"channel_attention\.conv3x3\.bias", "channel_attention.offset"),
)
# Convolutions of kernel 1 in the reference, linear layers here.
_POINTWISE = re.compile(r".*(bottleneck\.(expand|project)|channel_attention\.pointwise)\.weight")


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a state_dict, or gradients, of the authors' code to names and shapes of :class:`HiFiMambaV2`.

    Parameters without effect are dropped. Unknown names, and parts that cannot be combined because of their number or
    shape, stay unchanged.
    """
    converted: dict[str, torch.Tensor] = {}
    for reference_name, value in state_dict.items():
        if _DROPPED.fullmatch(reference_name):
            continue
        name = reference_name
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if _POINTWISE.fullmatch(name):
            value = value.squeeze(-1).squeeze(-1)
        elif name.endswith("channel_attention.scale") and value.shape[1:] == (1, 3, 3):
            value = value[:, 0, 1, 1]  # the other taps act on padding only
        converted[name] = value

    for name in [name for name in converted if name.endswith("sequence_convolution_dt.weight")]:
        prefix = name.removesuffix("_dt.weight")
        parts = [f"{prefix}_{part}.weight" for part in ("dt", "B", "C")]
        steering = prefix.replace("sequence_convolution", "steering_matrix_projection")
        values = [converted[name] for name in (*parts, steering) if name in converted]
        if [value.ndim for value in values] != [3] * 4 or len({value.shape[1:] for value in values[:3]}) > 1:
            continue
        rank = values[0].shape[0]
        converted[f"{prefix}.weight"] = torch.cat([converted.pop(name) for name in parts]).unsqueeze(2)
        # The reference computes delta of the steering stream and discards it.
        converted[steering] = converted[steering][:, rank:]
    return converted


def infer_options(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the keys of :class:`HiFiMambaV2Config` that follow from shapes of the authors' state_dict.

    Raises
    ------
    ValueError
        If it is not a state_dict of the authors' code.
    """
    positions = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name) for name in state_dict]
    blocks_of_stage = Counter(stage for stage, _ in {(int(match[1]) // 2, match[2]) for match in positions if match})

    def shape(name: str, num_axes: int) -> torch.Size:
        if name not in state_dict:
            raise ValueError(f"The state_dict has no {name}; expected one of the authors' HiFi-MambaV2.")
        value = state_dict[name]
        if value.ndim != num_axes or 0 in value.shape:
            raise ValueError(f"{name} of the state_dict has shape {tuple(value.shape)}; expected {num_axes} axes.")
        return value.shape

    block = "layers.0.blocks.0"
    hidden_channels, _, patch_size, _ = shape("patch_embed.proj.weight", 4)
    return {
        "hidden_channels": hidden_channels,
        "blocks_per_stage": tuple(blocks for _, blocks in sorted(blocks_of_stage.items())),
        "patch_size": patch_size,
        "state_size": shape(f"{block}.self_attention.A_logs", 2)[1],
        "num_routed_experts": shape(f"{block}.moe.router.weight", 2)[0],
    }


def from_reference(
    state_dict: Mapping[str, torch.Tensor],
    forward_operator: FFTOperator,
    backward_operator: FFTOperator,
    **options: Any,
) -> HiFiMambaV2:
    """Return HiFi-MambaV2 with the sizes and weights of a state_dict of the authors' code.

    Parameters
    ----------
    state_dict : Mapping[str, torch.Tensor]
        Its `model.state_dict()`.
    forward_operator, backward_operator : FFTOperator
        Fourier transform of DIRECT and its inverse.
    **options : Any
        Other keys of :class:`HiFiMambaV2Config`, such as `stochastic_depth` or `scan_backend`.

    Returns
    -------
    HiFiMambaV2
        In training mode, like any new module.

    Raises
    ------
    ValueError
        If a key of either side has no counterpart of the same shape; all of them are listed.
    """
    model = HiFiMambaV2(forward_operator, backward_operator, **infer_options(state_dict), **options)
    converted = convert_state_dict(state_dict)
    expected = model.state_dict()
    problems = [f"unknown: {name}" for name in converted.keys() - expected.keys()]
    problems += [f"missing: {name}" for name in expected.keys() - converted.keys()]
    problems += [
        f"shape of {name}: {tuple(converted[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in converted.keys() & expected.keys()
        if converted[name].shape != expected[name].shape
    ]
    if problems:
        raise ValueError(f"{len(problems)} keys of the state_dict do not fit: {'; '.join(sorted(problems))}.")
    model.load_state_dict(converted)
    return model


def load_reference_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read the state_dict of the authors' code from a file written by `torch.save`.

    The state_dict may lie under one of the usual keys, and its names may carry the prefix of
    DistributedDataParallel.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If reading would run code from the file, or if the file has no state_dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or unsafe content can raise any exception
        if isinstance(error, OSError) and error.errno != EINVAL:  # which PyTorch raises for files that are cut short
            raise
        raise ValueError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}). Expected a file that torch.save wrote "
            "from a state_dict; save the checkpoint's state_dict by itself."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{path} holds no state_dict; expected tensors by name, or these under the key 'state_dict'.")
    return {name.removeprefix("module."): value for name, value in content.items()}


def convert_checkpoint(source: Path, destination: Path) -> Path:
    """Convert a checkpoint of the authors' code to one that `direct predict --checkpoint` loads.

    The model configuration is written beside `destination`, with the suffix `.yaml`.

    Parameters
    ----------
    source, destination : Path
        File of the authors' code; file to write.

    Returns
    -------
    Path
        The configuration's path.

    Raises
    ------
    FileExistsError
        If a file that would be written exists.
    OSError
        If `source` cannot be opened, or the folder of `destination` does not exist.
    ValueError
        If `source` is no checkpoint of the authors' HiFi-MambaV2.
    """
    config_path = destination.with_suffix(".yaml")
    if config_path == destination:
        raise ValueError(f"{destination} is the name of the configuration; expected another suffix, such as .pt.")
    if not destination.parent.is_dir():
        raise FileNotFoundError(f"{destination.parent} is no folder; create it, or choose another destination.")
    for path in (destination, config_path):
        if path.exists():
            raise FileExistsError(f"{path} exists; remove it or choose another name.")
    state_dict = load_reference_checkpoint(source)
    model = from_reference(state_dict, fft2, ifft2)
    options = {"model_name": "hifimamba.hifimamba.HiFiMambaV2", **infer_options(state_dict)}
    with replace_when_complete(destination) as checkpoint_file, replace_when_complete(config_path) as config_file:
        torch.save({"model": model.state_dict()}, checkpoint_file)
        OmegaConf.save({"model": options}, config_file)
    return config_path
