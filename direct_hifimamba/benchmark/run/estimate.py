"""Time and disk that a benchmark needs, estimated from the measured costs of its models."""

import shutil
from dataclasses import dataclass

import h5py

from direct_hifimamba.benchmark.plan.configurations import checkpoint_steps
from direct_hifimamba.benchmark.plan.hashes import list_files
from direct_hifimamba.benchmark.plan.record import read_plan
from direct_hifimamba.benchmark.run.matrix import Benchmark, PlannedRun, count_iterations
from direct_hifimamba.data.formats.hdf5 import kspace_shape, read_header

_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: a weight and two moments of Adam in single precision."""
_BYTES_PER_PIXEL = 4
_SCORING_SECONDS_PER_PIXEL = 1e-6
"""Of the default metrics on one core, reading included, see performance/benchmark.py."""


@dataclass(frozen=True)
class Estimate:
    """Time and disk that one run needs.

    Attributes
    ----------
    iterations : int
    training, prediction, scoring : float
        Seconds, the first with validations, the last of one core.
    size : float
        Bytes of checkpoints and predictions.
    """

    iterations: int
    training: float
    prediction: float
    scoring: float
    size: float


def estimate(benchmark: Benchmark, run: PlannedRun) -> Estimate | None:
    """Return what a run needs; None where its model could not be measured, and for reconstructions without training."""
    cost = benchmark.read_costs().get(run.model)
    if cost is None or cost.seconds_per_step is None or cost.seconds_per_slice is None or cost.parameters is None:
        return None
    folders, described = benchmark.prediction_data(run.kind).values(), read_plan(benchmark.folder)["data"]
    slices = sum(file["slices"] for folder in folders for file in described[folder.name].values())
    validated = next(iter(benchmark.prediction_data("trial").values())).name  # as in Benchmark.make_run
    validations = benchmark.specification.validations if run.kind == "cell" else 0
    validated_slices = validations * sum(file["slices"] for file in described[validated].values())
    pixels = slices * _pixels_per_slice(benchmark)
    iterations = count_iterations(benchmark.budget(run.kind), cost)
    checkpoints = -(-iterations // checkpoint_steps(iterations, cost.seconds_per_step))
    return Estimate(
        iterations,
        iterations * cost.seconds_per_step + validated_slices * cost.seconds_per_slice.median,
        slices * cost.seconds_per_slice.median,
        pixels * _SCORING_SECONDS_PER_PIXEL,
        checkpoints * cost.parameters * _BYTES_PER_PARAMETER + pixels * _BYTES_PER_PIXEL,
    )


def _pixels_per_slice(benchmark: Benchmark) -> int:
    """Return the size of the images that are predicted, of the first test file."""
    with h5py.File(list_files(next(iter(benchmark.prediction_data("cell").values())))[0]) as file:
        height, width = kspace_shape(file)[-2:]
        if benchmark.first_config().inference.get("crop") == "header":
            height, width = read_header(file).get("reconstruction_size", (height, width))[:2]
    return int(height * width)


def format_estimates(benchmark: Benchmark) -> str:
    """Return a table of all runs, and the time and disk of the benchmark, as text."""
    estimates = [(run, estimate(benchmark, run)) for run in benchmark.plan()]
    width = max(len(run.name) for run, _ in estimates)
    lines = [f"{'run':{width}}  iterations  training, h  prediction, h  scoring, core h  disk, GB"]
    for run, found in estimates:
        if found is None:
            lines.append(f"{run.name:{width}}       not known")
            continue
        training, prediction, scoring = (part / 3600 for part in (found.training, found.prediction, found.scoring))
        cells = f"{found.iterations:10}  {training:11.2f}  {prediction:13.2f}  {scoring:15.2f}  {found.size / 1e9:8.2f}"
        lines.append(f"{run.name:{width}}  {cells}")
    known = [found for _, found in estimates if found is not None]
    device = sum(found.training + found.prediction for found in known) / 3600
    free = shutil.disk_usage(benchmark.folder.path).free / 1e9
    lines.append(
        f"{len(estimates)} runs: {device:.1f} hours of one device ({benchmark.specification.device}), "
        f"{sum(found.scoring for found in known) / 3600:.1f} core hours of scoring, "
        f"{sum(found.size for found in known) / 1e9:.1f} GB of disk; {free:.1f} GB are free."
    )
    return "\n".join(lines)
