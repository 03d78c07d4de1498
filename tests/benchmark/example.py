"""Results of a benchmark that never ran: plausible numbers, drawn at random."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from direct_hifimamba.benchmark.score.metrics import METRICS, metric_definitions
from direct_hifimamba.benchmark.score.results import (
    Cost,
    Data,
    Failure,
    Model,
    Protocol,
    Provenance,
    Results,
    Spread,
    Trial,
    digest,
)
from direct_hifimamba.benchmark.score.spectrum import BANDS
from direct_hifimamba.benchmark.score.summary import summarise_scores
from direct_hifimamba.benchmark.score.table import SCHEMA, Scores, make_table

BASELINE = "VarNet"
ZERO_FILLED = "zero-filled"
QUALITY = {ZERO_FILLED: 0.0, "U-Net": 5.0, BASELINE: 8.0, "RIM": 8.0, "HiFi-MambaV2": 9.0}
"""Labels, and how many dB they are above the zero-filled image."""
ACCELERATIONS = ("equispaced_4x", "equispaced_8x")
FAILED = ("U-Net", 0)


@cache
def make_benchmark(
    volumes: int = 3, slices: int = 10, seeds: tuple[int, ...] = (0, 1, 2), failed: bool = True
) -> tuple[Results, Scores]:
    """Results and scores in which RIM and the baseline do not differ, and `FAILED` has failed if `failed`."""
    files = [f"brain_{index}.h5" for index in range(volumes)]
    failures = [Failure(*FAILED, "killed: out of memory |\n at 3 GiB")] if failed else []
    scores = Scores.join(
        {
            (label, seed, acceleration): make_scores(label, acceleration, seed, files, slices)
            for label in QUALITY
            for acceleration in ACCELERATIONS
            for seed in ((None,) if label == ZERO_FILLED else seeds)
            if not (failed and (label, seed) == FAILED)
        }
    )
    results = Results(
        name="example",
        description="Models of different quality on data that do not exist.",
        created="2020-02-29T12:00:00+00:00",
        baseline=BASELINE,
        protocol=Protocol(
            data=Data(
                origin="simulated",
                files={file: digest(file) for file in files},
                slices=volumes * slices,
                masks={acceleration: digest(acceleration) for acceleration in ACCELERATIONS},
                training=digest("training"),
                validation=digest("validation"),
                protocol=None,
            ),
            accelerations=list(ACCELERATIONS),
            budget={"iterations": 600.0},
            schedule="cosine",
            loss={"losses": [{"function": "l1_loss", "multiplier": 1.0}]},
            seeds=list(seeds),
            metrics=metric_definitions(METRICS),
            evaluation=make_evaluation(),
        ),
        provenance=Provenance(
            versions={"python": "3.12.1"},
            host="a machine",
            threads=2,
            git_revision=None,
            command="direct-hifimamba benchmark example.yaml",
            specification="name: example\n",
        ),
        models=[make_model(label) for label in QUALITY],
        failures=failures,
        summary=summarise_scores(scores, BASELINE),
    )
    return results, scores


def make_results(**options: Any) -> Results:
    """The results of :func:`make_benchmark`."""
    return make_benchmark(**options)[0]


def without(scores: Scores, **removed: Any) -> Scores:
    """Scores without the rows that have all of these values, such as ``model="RIM"``."""
    rows = [row for row in scores.table.to_pylist() if any(row[key] != value for key, value in removed.items())]
    return Scores(pa.Table.from_pylist(rows, SCHEMA))


def make_evaluation(forward_operator: str = "fft2", crop: str | None = None) -> dict[str, Any]:
    """A few of the settings that configurations have."""
    return {"physics": {"forward_operator": forward_operator}, "crop": crop, "transforms": {"padding_eps": 0.0}}


def make_model(label: str) -> Model:
    if label == ZERO_FILLED:
        return Model(label, "classical")
    return Model(
        label,
        "trained",
        model_name="unet.unet_2d.Unet2d",
        config="model: {}\n",
        cost=Cost(
            threads=1,
            parameters=1_234_567,
            active_parameters=1_000_000,
            macs=3_200_000_000,
            seconds_per_iteration=Spread(0.512, 0.498, 0.61),
            seconds_per_slice=Spread(0.1, 0.09, 0.12),
            peak_memory_bytes=3 * 2**29,
        ),
        iterations=600,
        learning_rate=2e-3,
        search=[Trial(1e-3, 30.0), Trial(2e-3, 31.0), Trial(4e-3, None)],
    )


def make_scores(label: str, acceleration: str, seed: int | None, files: list[str], slices: int) -> pa.Table:
    """The table of a run, whose part that depends on the slice is common to all models."""
    common = np.random.default_rng(len(acceleration))
    generator = np.random.default_rng([sum(map(ord, label + acceleration)), 0 if seed is None else seed])
    scored = {}
    for file in files:
        difficulty = common.normal(0, 1.5) + common.normal(0, 1, slices)
        level = 24.0 + QUALITY[label] - (4 if acceleration.endswith("8x") else 0)
        decibel = level + difficulty + generator.normal(0, 0.1) + generator.normal(0, 0.2, slices)
        spectrum = 10 ** (-QUALITY[label] / 10) * np.linspace(0.01, 0.9, len(BANDS))
        bands = dict(zip(BANDS, spectrum[:, None], strict=True))
        scored[file] = {name: _score(name, decibel) for name in METRICS} | bands
    return make_table(scored)


def _score(metric: str, decibel: np.ndarray) -> np.ndarray:
    if metric.endswith("psnr"):
        return decibel
    error = 10 ** (-decibel / 20)
    return error if metric == "hfen" else 10 * error**2 if metric.endswith("nmse") else 1 - error
