"""The output folder of a benchmark whose reconstructions are invented: simulated brains, blurred, aliased and noisy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.ndimage import gaussian_filter

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.score.collect import ZERO_FILLED
from direct_hifimamba.benchmark.score.images import load_target, load_zero_filled
from direct_hifimamba.benchmark.score.metrics import METRICS, metric_definitions, score_volume
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
)
from direct_hifimamba.benchmark.score.spectrum import BANDS, error_spectrum
from direct_hifimamba.benchmark.score.summary import summarise_scores
from direct_hifimamba.benchmark.score.table import Scores, make_table
from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.simulate import SimulationOptions, simulate
from tests.benchmark.example import make_evaluation

OURS, HOSTILE, FAILING, CLASSICAL = "HiFi-MambaV2", "U-Net <b>$x$</b>", "ViT", "BART pics"
ERROR = "RuntimeError: out of memory <script>alert(1)</script>"
ACCELERATIONS = {
    "equispaced_4x": MaskOptions("FastMRIEquispaced", 4, 0.08),
    "equispaced_8x": MaskOptions("FastMRIEquispaced", 8, 0.04),
}
SIZE = (128, 128)
ITERATIONS = 600


@dataclass(frozen=True)
class Network:
    """An invented network: what is left of the aliasing, the blur in pixels, noise over the mean magnitude, a cost."""

    aliasing: float
    blur: float
    noise: float
    parameters: int


NETWORKS = {
    OURS: Network(0.06, 0.2, 0.02, 164_320),
    "VarNet": Network(0.09, 0.25, 0.03, 151_000),
    HOSTILE: Network(0.2, 0.6, 0.03, 482_000),
}


def write_folder(
    path: Path,
    seeds: tuple[int, ...] = (0,),
    slices: int = 2,
    volumes: int = 2,
    networks: dict[str, Network] = NETWORKS,
) -> tuple[BenchmarkFolder, Results, Scores]:
    """Simulate data, invent predictions and scores, and write everything that a report needs."""
    folder = BenchmarkFolder(path / "output")
    specification = _write_specification(path, folder, seeds, networks)
    masks = {}
    for name, mask in ACCELERATIONS.items():
        bounds = (60, 60 + volumes * slices)
        options = SimulationOptions(
            num_coils=2, snr=50, voxel_size=1.5, size=SIZE, slices=bounds, slab=slices, mask=mask
        )
        masks[name] = simulate("icbm152", specification.folder("test", name), options)
    shown: dict[str, Network | None] = {CLASSICAL: Network(0.3, 0.3, 0.02, 0), ZERO_FILLED: None}
    runs = [(label, seed) for label in networks for seed in seeds] + [(label, None) for label in shown]
    scores = Scores.join(
        {
            (label, seed, name): _score(folder, label, (networks | shown)[label], name, seed, files)
            for label, seed in runs
            for name, files in masks.items()
        }
    )
    for label in networks:
        for seed in seeds:
            _write_logs(folder.cell(label, seed).run, label, seed)
    names = [file.name for file in masks["equispaced_4x"]]
    results = Results(
        name="Brains <i>& more</i>",
        description="Invented reconstructions of simulated data.",
        created="2026-01-02T03:04:05+00:00",
        baseline="VarNet",
        protocol=Protocol(
            data=Data(
                SIMULATED,
                dict.fromkeys(names, "0" * 64),
                slices * volumes,
                dict.fromkeys(masks, "1" * 64),
                "2" * 64,
                "3" * 64,
                None,
            ),
            accelerations=list(ACCELERATIONS),
            budget={"iterations": ITERATIONS},
            schedule="cosine",
            loss={"losses": [{"function": "l1_loss", "multiplier": 1.0}]},
            seeds=list(seeds),
            metrics=metric_definitions(METRICS),
            evaluation=make_evaluation(),
        ),
        provenance=Provenance(
            {"torch": torch.__version__},
            "a processor",
            1,
            "0123456789abcdef",
            "direct-hifimamba benchmark SPEC.yaml",
            folder.specification.read_text(),
        ),
        models=[
            *(_describe(label, network.parameters) for label, network in networks.items()),
            Model(FAILING, "trained"),
            *(Model(label, "classical") for label in (CLASSICAL, ZERO_FILLED)),
        ],
        failures=[Failure(FAILING, seed, ERROR) for seed in seeds],
        summary=summarise_scores(scores, "VarNet"),
    )
    return folder, results, scores


def _write_specification(
    path: Path, folder: BenchmarkFolder, seeds: tuple[int, ...], networks: dict[str, Network]
) -> Specification:
    empty = path / "empty.yaml"
    empty.write_text("{}\n")
    (path / "data").mkdir()
    values = {
        "name": "brains",
        "data": str(path / "data"),
        "configs": [str(empty)],
        "accelerations": {name: [str(empty)] for name in ACCELERATIONS},
        "models": {label: {"configs": [str(empty)]} for label in [*networks, FAILING]},
        "baseline": "VarNet",
        "budget": {"iterations": ITERATIONS},
        "seeds": list(seeds),
    }
    folder.path.mkdir()
    OmegaConf.save(OmegaConf.create(values), folder.specification)
    return Specification.load(folder.specification)


def _score(
    folder: BenchmarkFolder, label: str, network: Network | None, acceleration: str, seed: int | None, files: list[Path]
) -> pa.Table:
    scored = {}
    for number, file in enumerate(files):
        target, image = load_target(file, SIZE), load_zero_filled(file, SIZE)
        if network is not None:
            image = _invent(target, image, network, 1000 * (seed or 0) + 10 * number + len(label))
            predictions = folder.cell(label, seed or 0).predictions(acceleration)
            predictions.mkdir(parents=True, exist_ok=True)
            with h5py.File(predictions / file.name, "w") as output:
                output["reconstruction"] = image
        bands = dict(zip(BANDS, error_spectrum(target, image)[:, None], strict=True))
        scored[file.name] = score_volume(target, image, METRICS) | bands
    return make_table(scored)


def _write_logs(run: Path, label: str, seed: int) -> None:
    """The logs of a training that was validated five times, as DIRECT writes them."""
    run.mkdir(parents=True, exist_ok=True)
    rng, metrics = np.random.default_rng([seed, len(label)]), []
    for iteration in range(12, ITERATIONS + 1, 12):
        loss = float(np.exp(-iteration / 200) + rng.uniform(0.1, 0.3))
        if iteration % 120 == 0:
            psnr = 30 - 8 * np.exp(-iteration / 200) - len(label) / 10
            path = run / f"metrics_val_equispaced_4x_{iteration}.json"
            path.write_text(json.dumps({"a.h5": {"fastmri_psnr_metric": psnr}}))
        metrics.append(json.dumps({"iteration": iteration, "loss": loss}))
    (run / "metrics.json").write_text("\n".join(metrics) + "\n")


def _invent(
    target: NDArray[np.float32], zero_filled: NDArray[np.float32], network: Network, seed: int
) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    image = target + network.aliasing * rng.uniform(0.7, 1.3, (len(target), 1, 1)) * (zero_filled - target)
    image = gaussian_filter(image, (0, network.blur, network.blur))
    image += network.noise * target.mean() * rng.standard_normal(target.shape)
    return np.abs(image).astype(np.float32)


def _describe(label: str, parameters: int) -> Model:
    def around(value: float) -> Spread:
        return Spread(value, 0.9 * value, 1.2 * value)

    return Model(
        label,
        "trained",
        "hifimamba.hifimamba.HiFiMambaV2" if label == OURS else "varnet.varnet.EndToEndVarNet",
        "physics: null",
        Cost(
            threads=1,
            parameters=parameters,
            active_parameters=parameters - 1000,
            macs=4096 * parameters,
            seconds_per_iteration=around(3e-6 * parameters),
            seconds_per_batch=around(1e-6 * parameters),
            seconds_per_slice=around(1e-6 * parameters),
            peak_memory_bytes=1000 * parameters,
        ),
        ITERATIONS,
        1e-3,
        [Trial(5e-4, 31.2), Trial(1e-3, 32.1), Trial(2e-3, None)],
    )
