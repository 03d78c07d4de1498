"""The results of a benchmark as one page that needs no network: tables, charts, images, routing, provenance."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from omegaconf import OmegaConf

from direct_hifimamba.benchmark.folder import BenchmarkFolder, slug
from direct_hifimamba.benchmark.plan.configurations import is_centered
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.report.charts import (
    Style,
    choose_styles,
    draw_cost,
    draw_distributions,
    draw_key,
    draw_spectra,
)
from direct_hifimamba.benchmark.report.pictures import (
    ERROR_COLOURS,
    ZOOM,
    Window,
    choose_window,
    draw_image,
    draw_target,
    encode_palette,
    error_limit,
    relative_error,
)
from direct_hifimamba.benchmark.report.tables import COST_REMARK, TIES, UNCERTAINTY, format_budget, groups_remark
from direct_hifimamba.benchmark.score.collect import ZERO_FILLED
from direct_hifimamba.benchmark.score.images import load_reconstruction, load_target, load_zero_filled
from direct_hifimamba.benchmark.score.results import Model, Results, Scores, Spread, SummaryRow
from direct_hifimamba.benchmark.score.routing import read_routing
from direct_hifimamba.benchmark.score.scores import GROUPS, METRICS, Metric
from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.files import replace_when_complete

RANKING = "fastmri_psnr"
"""The metric that slices are chosen by, cost is set against, and tables are sorted by at first."""

TITLES = {
    "fastmri": "fastMRI",
    "calgary_campinas": "Calgary-Campinas",
    "detail": "Fine detail",
    "unit_interval": "Slices in [0, 1], after the paper",
}
"""Of the groups of metrics."""

RANKS = ("median", "best", "worst")

MAX_PIXELS = 2**25
"""About as many pixels do the pictures of a page have; noisy ones take 0.4 bytes each."""


@dataclass(frozen=True)
class Cost:
    """A column of the cost table: attribute of :class:`Model`, name and unit; and whether it has a chart."""

    attribute: str
    label: str
    unit: str = ""
    is_charted: bool = True

    def of(self, model: Model) -> float | None:
        """The cost of a model; the median, where it was measured repeatedly."""
        value = getattr(model, self.attribute)
        return value.median if isinstance(value, Spread) else value


COSTS = (
    Cost("parameters", "parameters"),
    Cost("active_parameters", "active parameters per pixel", is_charted=False),
    Cost("macs", "multiply-accumulates per slice"),
    Cost("seconds_per_slice", "time per slice", "s"),
    Cost("seconds_per_iteration", "time per training iteration", "s"),
    Cost("peak_memory_bytes", "peak memory in training", "B", is_charted=False),
)


class SliceKey(NamedTuple):
    """A slice of the test split."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, slice {self.number}"


@dataclass(frozen=True)
class Picture:
    """A model's image of a slice; `uri` shows the image and right of it the error."""

    label: str
    uri: str
    psnr: float | None
    ssim: float | None


@dataclass(frozen=True)
class SliceComparison:
    """One slice as all models reconstructed it, and the models whose best, worst or median slice it is, by rank."""

    key: SliceKey
    by_rank: dict[str, list[str]]
    target: str
    height: int
    width: int
    window: Window
    pictures: list[Picture]


@dataclass(frozen=True)
class Comparison:
    """Slices at one acceleration, and which is the best, worst or median one of the models they were chosen for."""

    acceleration: str
    shown: dict[str, Scores]
    chosen: dict[str, dict[str, SliceKey]]
    error_limit: float
    slices: list[SliceComparison]

    def anchor(self, key: SliceKey) -> str:
        """Identifier of a slice in the page."""
        return slug(f"{self.acceleration} {key.file} {key.number}").replace(".", "_")


@dataclass(frozen=True)
class RoutedBlock:
    """Where the router of one block sent the pixels of a slice, and of all slices of its volume."""

    name: str
    uri: str
    shares: list[float]

    @property
    def description(self) -> str:
        """For those who do not see the map."""
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


class ScoreTable:
    """The summary at one acceleration, in rows from the best to the worst."""

    def __init__(self, results: Results, acceleration: str, group: str) -> None:
        self.acceleration = acceleration
        self.group = group
        self.metrics = {name: metric for name, metric in METRICS.items() if metric.group == group}
        self.sorted_by = RANKING if RANKING in self.metrics else next(iter(self.metrics))
        self._rows = {
            (row.model, row.metric): row
            for row in results.summary
            if row.acceleration == acceleration and row.metric in self.metrics
        }
        sign = -1 if self.metrics[self.sorted_by].higher_is_better else 1
        means = {model.label: self.cell(model.label, self.sorted_by) for model in results.models}
        self.labels = sorted(means, key=lambda label: (not (row := means[label]), sign * row.mean if row else 0))

    def cell(self, label: str, metric: str) -> SummaryRow | None:
        """The summary of one model and metric, if it has one."""
        return self._rows.get((label, metric))

    def seeds(self, label: str) -> int:
        """How many seeds of a model finished."""
        return max((row.seeds for (model, _), row in self._rows.items() if model == label), default=0)

    def is_best(self, label: str, metric: str) -> bool:
        """Whether no model has a better mean."""
        return self._rows[label, metric].difference_to_best is None

    def is_tied(self, label: str, metric: str) -> bool:
        """Whether no significant difference to the best model was shown."""
        difference = self._rows[label, metric].difference_to_best
        return difference is not None and not difference.is_distinguishable


class Chart(NamedTuple):
    """A drawing, the models in it, and what it shows in words."""

    svg: Markup
    labels: list[str]
    title: str
    description: str


def write_report(folder: BenchmarkFolder, results: Results) -> Path:
    """Write the page.

    Parameters
    ----------
    folder : BenchmarkFolder
        With the predictions and the checkpoints.
    results : Results

    Returns
    -------
    Path
        Of the page, which is complete or not there.

    Raises
    ------
    OSError, ValueError
        If an image or a checkpoint cannot be read.
    """
    specification = Specification.load(folder.specification)
    highlighted = _choose_highlighted(results)
    styles = choose_styles([model.label for model in results.models], highlighted)
    accelerations = results.protocol.accelerations
    spectra = {acceleration: _find_spectra(results, acceleration) for acceleration in accelerations}
    comparisons = [
        _compare_slices(folder, specification, results, acceleration, highlighted) for acceleration in accelerations
    ]
    text = (
        _environment()
        .get_template("report.html")
        .render(
            results=results,
            budget=format_budget(results.protocol),
            highlighted=highlighted,
            origin=results.protocol.data.origin,
            simulated=SIMULATED,
            trained={model.label for model in results.models if model.kind == "trained"},
            ties=TIES,
            remarks=[UNCERTAINTY, *groups_remark(results.summary)],
            cost_remark=COST_REMARK,
            titles=TITLES,
            definitions=GROUPS,
            metrics=METRICS,
            ranking=METRICS[RANKING],
            tables={name: [ScoreTable(results, name, group) for group in GROUPS] for name in accelerations},
            costs=COSTS,
            searched=sorted({trial.learning_rate for model in results.models for trial in model.search}),
            keys={label: draw_key(style) for label, style in styles.items()},
            distributions={
                group: [
                    charts
                    for acceleration in accelerations
                    if (charts := _draw_distributions(results, acceleration, group, styles))
                ]
                for group in GROUPS
            },
            cost_charts={acceleration: _draw_costs(results, acceleration, styles) for acceleration in accelerations},
            spectra=spectra,
            spectrum_charts=[
                _draw_spectra(results, acceleration, found, styles) for acceleration, found in spectra.items() if found
            ],
            comparisons=[comparison for comparison in comparisons if comparison],
            error_colours=ERROR_COLOURS,
            zoom=ZOOM,
            routings=[
                figure
                for comparison in comparisons
                if comparison
                for figure in _draw_routings(folder, specification, results, comparison)
            ],
            failures=[scores for scores in results.scores if scores.status == "failed"],
        )
    )
    folder.report.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(folder.report) as partial:
        partial.write_text(text, "utf-8")
    return folder.report


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": _format_score,
        "engineering": format_engineering,
        "slug": slug,
        "p_value": lambda value: "< 0.001" if value < 1e-3 else f"= {value:.3f}",
        "plain": lambda value: json.dumps(asdict(value), indent=1),
    }
    return environment


def _format_score(value: float, metric: Metric, sign: str = "") -> str:
    return metric.format(value, sign).replace("-", "\N{MINUS SIGN}")


def format_engineering(value: float, unit: str = "") -> str:
    """Three digits and a prefix.

    >>> format_engineering(164320), format_engineering(0.0213, "s")
    ('164 k', '21.3 ms')
    """
    if value == 0 or (not unit and abs(value) < 1000):
        return f"{value:.3g} {unit}".strip()
    exponent = min(max(int(np.floor(np.log10(abs(value) * 1.0005) / 3)), -3), 4)
    scaled = value / 1000.0**exponent
    decimals = max(0, 2 - int(np.floor(np.log10(abs(scaled) * 1.0005))))
    return f"{scaled:.{decimals}f} {'nµm kMGT'[exponent + 3].strip()}{unit}".strip()


def _is_ours(model: Model) -> bool:
    return model.model_name is not None and model.model_name.endswith(".HiFiMambaV2")


def _choose_highlighted(results: Results) -> list[str]:
    """Every HiFi-MambaV2; the baseline, where most models are that, as in ablations."""
    trained = [model for model in results.models if model.kind == "trained"]
    ours = [model.label for model in trained if _is_ours(model)]
    return ours if 2 * len(ours) <= len(trained) else [results.baseline]


def _finished(results: Results, acceleration: str) -> dict[str, list[Scores]]:
    """Scores by model, in the order of the models and seeds; models without any are left out."""
    scores: dict[str, list[Scores]] = {model.label: [] for model in results.models}
    for entry in results.scores:
        if entry.acceleration == acceleration and entry.status == "finished":
            scores[entry.model].append(entry)
    return {label: entries for label, entries in scores.items() if entries}


def _mean_over_seeds(values: Sequence[Mapping[Any, float | None]]) -> list[float]:
    """Every key's mean; without those that have no value."""
    collected = defaultdict(list)
    for seed in values:
        for key, value in seed.items():
            if value is not None:
                collected[key].append(value)
    return [fmean(entries) for entries in collected.values()]


def _slice_values(scores: Scores, metric: str) -> dict[SliceKey, float]:
    return {
        SliceKey(file, index): value
        for file, slices in scores.slices.items()
        for index, entry in enumerate(slices)
        if (value := entry[metric]) is not None
    }


def _rows(results: Results, acceleration: str, metric: str) -> dict[str, SummaryRow]:
    """The summary of every model."""
    return {row.model: row for row in results.summary if (row.acceleration, row.metric) == (acceleration, metric)}


def _draw_distributions(results: Results, acceleration: str, group: str, styles: Mapping[str, Style]) -> list[Chart]:
    """A chart per metric. Those that are not trained are left out: they are far off, and would set the scale."""
    trained = {model.label for model in results.models if model.kind == "trained"}
    finished = {label: scores for label, scores in _finished(results, acceleration).items() if label in trained}
    charts = []
    for name, metric in METRICS.items():
        rows = {label: row for label, row in _rows(results, acceleration, name).items() if label in finished}
        if metric.group != group or not rows:
            continue
        slices = {label: _mean_over_seeds([_slice_values(seed, name) for seed in finished[label]]) for label in rows}
        volumes = {
            label: _mean_over_seeds(
                [{file: scores[name] for file, scores in seed.volumes.items()} for seed in finished[label]]
            )
            for label in rows
        }
        intervals = {label: _mean_and_interval(row) for label, row in rows.items()}
        svg = draw_distributions(slices, volumes, intervals, styles, metric.heading)
        means = (f"{label} {_format_score(row.mean, metric)}" for label, row in rows.items())
        title = f"{metric.label} at {acceleration}"
        charts.append(Chart(svg, list(rows), title, f"Means: {', '.join(means)}."))
    return charts


def _mean_and_interval(row: SummaryRow) -> tuple[float, float, float]:
    """Mean and both ends of its interval; the mean three times if there is none."""
    return row.mean, row.mean if row.low is None else row.low, row.mean if row.high is None else row.high


def _draw_costs(results: Results, acceleration: str, styles: Mapping[str, Style]) -> list[Chart]:
    """A chart per cost, with the models that have both a cost and a score."""
    metric = METRICS[RANKING]
    rows = _rows(results, acceleration, RANKING)
    charts = []
    for cost in COSTS:
        costs = {model.label: value for model in results.models if model.label in rows and (value := cost.of(model))}
        if not cost.is_charted or not costs:
            continue
        points = {label: (value, *_mean_and_interval(rows[label])) for label, value in costs.items()}
        svg = draw_cost(points, styles, cost.label, cost.unit, metric.heading)
        described = (
            f"{label} {format_engineering(value, cost.unit)} and {_format_score(rows[label].mean, metric)}"
            for label, value in costs.items()
        )
        title = f"{metric.label} against {cost.label} at {acceleration}"
        charts.append(Chart(svg, list(costs), title, f"{', '.join(described)}."))
    return charts


def _find_spectra(results: Results, acceleration: str) -> dict[str, list[float]]:
    """Relative error energy of every band by model, the mean over volumes and seeds; NaN where it is not defined."""
    spectra = {}
    for label, entries in _finished(results, acceleration).items():
        bands = zip(*(spectrum for entry in entries for spectrum in entry.spectrum.values()), strict=True)
        defined = ([value for value in band if value is not None] for band in bands)
        spectra[label] = [fmean(values) if values else np.nan for values in defined]
    return spectra


def _draw_spectra(
    results: Results, acceleration: str, spectra: Mapping[str, Sequence[float]], styles: Mapping[str, Style]
) -> Chart:
    return Chart(
        draw_spectra(results.protocol.spectrum_edges, spectra, styles),
        list(spectra),
        f"Relative error energy at {acceleration}",
        "The numbers are in the tables below.",
    )


def choose_slices(values: Mapping[SliceKey, float]) -> dict[str, SliceKey]:
    """The slices with the median, best and worst value by rank; of two in the middle, the worse one."""
    ordered = sorted(values, key=lambda key: (values[key], key))
    return dict(zip(RANKS, (ordered[(len(ordered) - 1) // 2], ordered[-1], ordered[0]), strict=True))


def _load_slices(
    keys: Iterable[SliceKey], test: Path, predictions: Mapping[str, Path], labels: Iterable[str], centered: bool
) -> dict[SliceKey, tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]]:
    """The target and, by model, the images of slices. Only one volume of each is in memory at a time."""
    slices = {}
    for file, keys_of_file in groupby(sorted(keys), lambda key: key.file):
        images = {label: load_reconstruction(path / file) for label, path in predictions.items()}
        height, width = next(iter(images.values())).shape[1:]
        target = load_target(test / file, (height, width), centered)
        images[ZERO_FILLED] = load_zero_filled(test / file, (height, width), centered)
        for key in keys_of_file:
            slices[key] = target[key.number].copy(), {label: images[label][key.number].copy() for label in labels}
    return slices


def _choose_exemplary(
    results: Results, trained: Sequence[str], highlighted: Sequence[str], pixels_per_slice: int
) -> list[str]:
    """The models of which slices are shown, as many as `MAX_PIXELS` allows: first the baseline and highlighted ones."""
    count = max(1, MAX_PIXELS // (len(results.protocol.accelerations) * len(RANKS) * pixels_per_slice))
    first = sorted(trained, key=lambda label: (label != results.baseline, label not in highlighted))[:count]
    return [label for label in trained if label in first]


def _compare_slices(
    folder: BenchmarkFolder,
    specification: Specification,
    results: Results,
    acceleration: str,
    highlighted: Sequence[str],
) -> Comparison | None:
    """Images of the first seed that each model finished; a slice that was chosen for several models is shown once."""
    shown = {label: entries[0] for label, entries in _finished(results, acceleration).items()}
    trained = [label for label, scores in shown.items() if scores.seed is not None]
    if not trained:
        return None
    centered = is_centered(OmegaConf.create(results.protocol.evaluation))
    predictions = {
        label: folder.cell(label, scores.seed or 0).predictions(acceleration)
        for label, scores in shown.items()
        if label != ZERO_FILLED
    }
    height, width = load_reconstruction(predictions[trained[0]] / next(iter(shown[trained[0]].volumes))).shape[1:]
    # Every picture is an image and its error.
    exemplary = _choose_exemplary(results, trained, highlighted, 2 * height * width * len(shown))
    chosen = {label: choose_slices(values) for label in exemplary if (values := _slice_values(shown[label], RANKING))}
    ranks: dict[SliceKey, dict[str, list[str]]] = {}
    for label in sorted(chosen, key=lambda label: label not in highlighted):
        for rank, key in chosen[label].items():
            ranks.setdefault(key, {}).setdefault(rank, []).append(label)

    test = specification.folder(specification.splits.test, acceleration)
    images = _load_slices(ranks, test, predictions, shown, centered)
    limit = error_limit([relative_error(images[key][0], images[key][1][label]) for key in ranks for label in trained])
    slices = []
    for key, by_rank in ranks.items():
        target, reconstructed = images[key]
        pictures = []
        for label, image in reconstructed.items():
            scores = shown[label].slices[key.file][key.number]
            pictures.append(
                Picture(label, draw_image(target, image, limit), scores["fastmri_psnr"], scores["fastmri_ssim"])
            )
        height, width = target.shape
        slices.append(
            SliceComparison(key, by_rank, draw_target(target), height, width, choose_window(target), pictures)
        )
    return Comparison(acceleration, shown, chosen, limit, slices)


def _draw_routings(
    folder: BenchmarkFolder, specification: Specification, results: Results, comparison: Comparison
) -> Iterator[RoutingFigure]:
    """The routing of every HiFi-MambaV2 for which slices were chosen."""
    test = specification.folder(specification.splits.test, comparison.acceleration)
    targets = {entry.key: entry.target for entry in comparison.slices}
    for model in results.models:
        if _is_ours(model) and model.label in comparison.chosen:
            seed, iterations = comparison.shown[model.label].seed, model.iterations
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
    """`stages.0.blocks.1` as readers count."""
    _, stage, _, block = path.split(".")
    return f"Stage {int(stage) + 1}, block {int(block) + 1}"
