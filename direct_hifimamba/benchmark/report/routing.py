"""Where the routers of HiFi-MambaV2 send the pixels of a slice."""

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.report.pictures import encode_palette
from direct_hifimamba.benchmark.report.slices import RANKS, Comparison, SliceKey
from direct_hifimamba.benchmark.report.tables import Cell, Column, Table
from direct_hifimamba.benchmark.score.results import Model, Results
from direct_hifimamba.benchmark.score.routing import read_routing


@dataclass(frozen=True)
class RoutedBlock:
    """Where the router of one block sent the pixels of a slice, and of all slices of its volume."""

    name: str
    uri: str
    shares: list[float]

    @property
    def description(self) -> str:
        """The shares in words, for readers who do not see the map."""
        return ", ".join(f"{share:.0%} to expert {number}" for number, share in enumerate(self.shares, 1))


@dataclass(frozen=True)
class RoutingFigure:
    """The routing of one model in its median slice at one acceleration."""

    label: str
    acceleration: str
    key: SliceKey
    target: str
    blocks: list[RoutedBlock]
    colours: list[str]

    @property
    def table(self) -> Table:
        """The share of the pixels of the volume that each expert gets."""
        return Table(
            f"{self.label} at {self.acceleration}: share of the pixels that each expert gets, all slices of "
            f"{self.key.file}.",
            [Column("block", is_text=True), *(Column(f"expert {number + 1}") for number in range(len(self.colours)))],
            [[Cell(block.name), *(Cell(f"{share:.1%}", share) for share in block.shares)] for block in self.blocks],
        )


def is_ours(model: Model) -> bool:
    """Return whether a model is a HiFi-MambaV2."""
    return model.model_name is not None and model.model_name.endswith(".HiFiMambaV2")


def draw_routings(
    folder: BenchmarkFolder, specification: Specification, results: Results, comparison: Comparison
) -> Iterator[RoutingFigure]:
    """Yield the routing of every HiFi-MambaV2 for which slices were chosen."""
    test = specification.folder(specification.splits.test, comparison.acceleration)
    targets = {entry.key: entry.target for entry in comparison.slices}
    for model in results.models:
        if is_ours(model) and model.label in comparison.chosen:
            seed, iterations = comparison.seeds[model.label], model.iterations
            assert seed is not None and iterations is not None
            key = comparison.chosen[model.label][RANKS[0]]
            checkpoint = folder.cell(model.label, seed).checkpoint(iterations - 1)
            blocks = read_routing(checkpoint, test / key.file, specification.device)
            if blocks:
                # Of rising lightness: experts differ without their hue as well.
                shades = mpl.colormaps["viridis"](np.linspace(0, 1, len(blocks[0].shares)))
                colours = [to_hex(shade) for shade in shades]
                drawn = [
                    RoutedBlock(
                        _name_block(block.block),
                        encode_palette(block.experts[key.number], colours),
                        block.shares.tolist(),
                    )
                    for block in blocks
                ]
                yield RoutingFigure(model.label, comparison.acceleration, key, targets[key], drawn, colours)


def _name_block(path: str) -> str:
    """Return a name such as `Stage 1, block 2` for `stages.0.blocks.1`."""
    _, stage, _, block = path.split(".")
    return f"Stage {int(stage) + 1}, block {int(block) + 1}"
