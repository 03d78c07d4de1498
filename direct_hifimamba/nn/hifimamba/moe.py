"""Shared-routed mixture of experts: a shared expert for every pixel, plus one that a router chooses per pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from direct_hifimamba.ops.experts import Assignment, ExpertWeights, sum_of_experts

if TYPE_CHECKING:
    from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config


#: Ratio of the hidden channels of an expert to its channels.
EXPANSION = 2


class Expert(nn.Module):
    """Two-layer MLP with GELU.

    Parameters
    ----------
    channels, hidden : int
        Input and output channels; hidden channels.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (..., channels) to (..., channels)."""
        pixels = features.reshape(-1, features.shape[-1])
        return sum_of_experts(pixels, [self.weights], [Assignment()]).reshape(features.shape)

    @property
    def weights(self) -> ExpertWeights:
        """Parameters in the form of the operator."""
        return ExpertWeights(self.expand.weight, self.expand.bias, self.project.weight, self.project.bias)


def _weights(experts: nn.ModuleList) -> list[ExpertWeights]:
    return [cast(Expert, expert).weights for expert in experts]


class Routing(NamedTuple):
    """Decisions of a router with E experts for P pixels."""

    experts: torch.Tensor  #: the chosen expert of every pixel, (P,) int64
    weights: torch.Tensor  #: its probability, which weighs its output, (P,)
    probabilities: torch.Tensor  #: softmax over all experts, (P, E)


class Router(nn.Module):
    """Linear router that chooses the most probable expert; under autocast it keeps the precision of its weights.

    Parameters
    ----------
    channels, num_experts : int
        Input channels; experts to choose from.
    """

    def __init__(self, channels: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.projection = nn.Linear(channels, num_experts)

    def forward(self, pixels: torch.Tensor) -> Routing:
        """Choose an expert for each of the pixels (P, channels)."""
        weight, bias = self.projection.weight, self.projection.bias
        with torch.autocast(pixels.device.type, enabled=False):
            # Experts by pixels, as softmax over a short last axis takes a CPU 20 times as long.
            probabilities = torch.addmm(bias.unsqueeze(1), weight, pixels.to(weight.dtype).t()).softmax(dim=0)
            weights, experts = probabilities.max(dim=0)
        return Routing(experts, weights, probabilities.t())


def _count(experts: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Pixels of each expert, (num_experts,) int64. Unlike `bincount`, it does not break a graph of torch.compile."""
    return (experts == torch.arange(num_experts, device=experts.device).unsqueeze(1)).sum(dim=1)


def load_balancing_loss(routing: Routing) -> torch.Tensor:
    """Return the load-balancing loss of Switch Transformer [1]_, E sum_e P_e f_e, over all pixels of the batch.

    P_e is the mean probability of expert e and f_e the fraction of pixels that chose it. The loss is 1 for a uniform
    load and E if one expert has probability 1 everywhere. The gradient flows through P_e only.

    References
    ----------
    .. [1] Fedus, Zoph, Shazeer. Switch Transformers. JMLR 23, 2022, equation 4.
    """
    num_pixels, num_experts = routing.probabilities.shape
    fractions = _count(routing.experts, num_experts).to(routing.probabilities.dtype) / num_pixels
    return num_experts * (routing.probabilities.mean(dim=0) * fractions).sum()


@contextmanager
def watch_routing(network: nn.Module, callback: Callable[[str, Routing], None]) -> Iterator[dict[str, Router]]:
    """Call `callback(block, routing)` for every call of a router within the context; yield the routers by block.

    A block is a module with a mixture of experts; its name is its path in the network, such as `stages.0.blocks.1`,
    without the prefix of DistributedDataParallel.
    """
    routers = {
        name.removeprefix("module.").rpartition(".")[0]: module.routed.router
        for name, module in network.named_modules()
        if isinstance(module, SharedRoutedMoE) and module.routed is not None
    }
    with ExitStack() as hooks:
        for block, router in routers.items():
            handle = router.register_forward_hook(lambda _, __, routing, block=block: callback(block, routing))
            hooks.callback(handle.remove)
        yield routers


class RoutedExperts(nn.Module):
    """Experts and a router that chooses one of them for each pixel.

    Every expert runs in every call, if necessary on zero pixels, so that its parameters always have a gradient.

    Parameters
    ----------
    router : Router
        Chooses the experts.
    experts : nn.ModuleList
        The experts; may be shared with other blocks.
    """

    def __init__(self, router: Router, experts: nn.ModuleList) -> None:
        super().__init__()
        self.router = router
        self.experts = experts

    def assign(self, pixels: torch.Tensor) -> tuple[list[Assignment], torch.Tensor]:
        """Route pixels (P, channels): return the assignment of each expert, and the load-balancing loss."""
        routing = self.router(pixels)
        order = routing.experts.argsort(stable=True)
        sizes = _count(routing.experts, len(self.experts)).tolist()
        weights = routing.weights.to(pixels.dtype).index_select(0, order).split(sizes)
        return list(map(Assignment, order.split(sizes), weights)), load_balancing_loss(routing)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map pixels (P, channels) to the weighted outputs of their experts and the load-balancing loss."""
        assignments, balance = self.assign(pixels)
        return sum_of_experts(pixels, _weights(self.experts), assignments), balance


class SharedRoutedMoE(nn.Module):
    """Sum of a shared expert and a routed one, either of which may be absent.

    Parameters
    ----------
    shared : nn.ModuleList
        The expert for every pixel, or none.
    routed : RoutedExperts, optional
        The experts of which one is chosen per pixel.
    """

    def __init__(self, shared: nn.ModuleList, routed: RoutedExperts | None) -> None:
        super().__init__()
        self.shared = shared
        self.routed = routed

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (batch, height, width, channels) to the same shape and a load-balancing loss.

        The loss is 0 without routed experts.
        """
        pixels = features.flatten(0, -2)
        experts = _weights(self.shared)
        assignments = [Assignment()] * len(experts)
        balance = features.new_zeros((), dtype=torch.float32)
        if self.routed is not None:
            routed, balance = self.routed.assign(pixels)
            experts += _weights(self.routed.experts)
            assignments += routed
        return sum_of_experts(pixels, experts, assignments).unflatten(0, features.shape[:-1]), balance


def build_mixtures(config: HiFiMambaV2Config) -> list[SharedRoutedMoE]:
    """Return one mixture of experts per block; `config.expert_sharing` determines which blocks share experts.

    Routers are never shared. With `moe: none` the mixture is a single MLP with the hidden channels of two experts, so
    that the cost per pixel is the same.
    """
    channels, hidden = config.hidden_channels, EXPANSION * config.hidden_channels

    def experts(count: int, hidden: int = hidden) -> nn.ModuleList:
        return nn.ModuleList(Expert(channels, hidden) for _ in range(count))

    num_blocks = sum(config.blocks_per_stage)
    blocks_per_set = {"block": (1,) * num_blocks, "stage": config.blocks_per_stage, "network": (num_blocks,)}
    mixtures = []
    for blocks in blocks_per_set[config.expert_sharing]:
        shared = experts(1, 2 * hidden) if config.moe == "none" else experts(0 if config.moe == "routed" else 1)
        pool = experts(config.num_routed_experts) if config.moe in ("shared_routed", "routed") else None
        for _ in range(blocks):
            routed = None if pool is None else RoutedExperts(Router(channels, config.num_routed_experts), pool)
            mixtures.append(SharedRoutedMoE(shared, routed))
    return mixtures
