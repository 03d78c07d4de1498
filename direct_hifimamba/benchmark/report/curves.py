"""Learning curves of a run, read from what DIRECT writes while it trains."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

import numpy as np

from direct_hifimamba.benchmark.score.metric import Array

_TIME = "%Y-%m-%d %H:%M:%S,%f"
_LINE = re.compile(r"^\[(?P<time>[-\d]+ [\d:]+,\d+)\]\[(?P<logger>[\w.]+)\]\[\w+\] - (?P<text>.*)$")
_ITERATION = re.compile(r"\biter: (\d+)\b")
_VALIDATION = re.compile(r"metrics_val_(?P<dataset>.+)_(?P<iteration>\d+)\.json")


@dataclass(frozen=True)
class Curve:
    """The learning curve of one training.

    Attributes
    ----------
    loss : float64 array of shape (2, entries)
        Iterations and values.
    validation : dict
        The same by data set and metric, such as `fastmri_psnr at equispaced_4x`.
    time : float64 array of shape (2, entries)
        Iterations and minutes of training until then.
    """

    loss: Array
    validation: dict[str, Array]
    time: Array

    def minutes(self, iterations: Array) -> Array:
        """Return the minutes of training until some iterations, NaN if the log has no times."""
        if not self.time.size:
            return np.full(len(iterations), np.nan)
        return np.interp(iterations, *self.time)


def read_curve(folder: Path) -> Curve | None:
    """Read `metrics.json`, `metrics_val_*.json` and `log_0_0.txt` of a training; None if there is no `metrics.json`.

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
    validation = {name: _to_array(dict(sorted(points.items()))) for name, points in _read_validation(folder).items()}
    return Curve(_to_array(loss), validation, _to_array(_read_times(folder / "log_0_0.txt")))


def _read_validation(folder: Path) -> dict[str, dict[int, float]]:
    """Return the mean over volumes by metric and iteration."""
    validation: dict[str, dict[int, float]] = {}
    for path in folder.glob("metrics_val_*.json"):
        match = _VALIDATION.fullmatch(path.name)
        volumes = list(json.loads(path.read_text(encoding="utf-8")).values()) if match else []
        for key in volumes[0] if volumes else ():
            assert match is not None
            name = f"{key.removesuffix('_metric')} at {match['dataset']}"
            validation.setdefault(name, {})[int(match["iteration"])] = fmean(volume[key] for volume in volumes)
    return validation


def _to_array(points: dict[int, float]) -> Array:
    return np.array([list(points), list(points.values())], np.float64)


def _read_times(log: Path) -> dict[int, float]:
    """Return the minutes of training until every iteration in a log, without validation and interruptions."""
    minutes: dict[int, float] = {}
    total, last = 0.0, None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        match = _LINE.match(line)
        if match is None:
            continue
        time = datetime.strptime(match["time"], _TIME)
        found = _ITERATION.search(match["text"]) if match["logger"] == "CommonMetricPrinter" else None
        if match["text"].startswith("Machine rank:"):  # DIRECT was started again
            last = None
        elif match["text"].startswith("Evaluating:") and last is not None:
            total += (time - last).total_seconds() / 60
            last = None
        elif match["text"].startswith("Wrote per image logs"):
            last = time
        elif found is not None:
            iteration = int(found[1])
            if last is not None:
                total += (time - last).total_seconds() / 60
            elif minutes:  # resumed from a checkpoint, perhaps before the last entry
                total = float(np.interp(iteration, list(minutes), list(minutes.values())))
            minutes = {other: value for other, value in minutes.items() if other < iteration}
            minutes[iteration], last = total, time
    return minutes
