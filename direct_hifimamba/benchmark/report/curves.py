"""Learning curves of a run, read from what DIRECT writes while it trains."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from direct_hifimamba.benchmark.score.metrics import Array


@dataclass(frozen=True)
class Curve:
    """The learning curve of one training.

    Attributes
    ----------
    loss : float64 array of shape (2, entries)
        Iterations and values.
    validation : dict
        The same by data set and metric, such as `fastmri_psnr at equispaced_4x`.
    """

    loss: Array
    validation: dict[str, Array]


def read_curve(folder: Path) -> Curve | None:
    """Read `metrics.json` and `metrics_val_*.json` of a training; None if there is no `metrics.json`.

    Parameters
    ----------
    folder : Path
        In which `direct train` has written its checkpoints.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return None
    loss: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the training was killed while it wrote the line
            continue
        # A training that was resumed repeats the iterations after its last checkpoint.
        loss = {iteration: value for iteration, value in loss.items() if iteration < entry["iteration"]}
        if "loss" in entry:
            loss[int(entry["iteration"])] = entry["loss"]
    validation: dict[str, dict[int, float]] = {}
    for path in folder.glob("metrics_val_*.json"):
        dataset, _, iteration = path.stem.removeprefix("metrics_val_").rpartition("_")
        volumes = list(json.loads(path.read_text(encoding="utf-8")).values())
        for key in volumes[0]:
            points = validation.setdefault(f"{key.removesuffix('_metric')} at {dataset}", {})
            points[int(iteration)] = fmean(volume[key] for volume in volumes)
    return Curve(_to_array(loss), {name: _to_array(points) for name, points in validation.items()})


def _to_array(points: dict[int, float]) -> Array:
    return np.array(sorted(points.items()), np.float64).reshape(-1, 2).T
