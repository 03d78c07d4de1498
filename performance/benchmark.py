"""Measure what a benchmark costs beside training: seconds, memory and disk of its stages for one volume of fastMRI.

Run `python performance/benchmark.py --output folder`. The volume is noise of 35 slices, 15 coils and 640 x 368 samples.
Every measurement is made in a process of its own. The second table multiplies the first for the whole matrix of
projects/hifimamba/fastmri_knee_multicoil/benchmark.yaml with 199 test volumes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
from common import extra_megabytes, in_fresh_process, machine, markdown_table, write_results
from numpy.typing import NDArray

from direct_hifimamba.benchmark.plan.hashes import KSpaceMemory, describe_folders
from direct_hifimamba.benchmark.run.classical import Acquisition, reconstruct
from direct_hifimamba.benchmark.run.predictions import check_predictions
from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.scoring import ALWAYS, find_volumes, score_run
from direct_hifimamba.benchmark.score.spectrum import BANDS
from direct_hifimamba.data.formats.hdf5 import write_view, write_volume

SLICES, SHAPE, CROP = 35, (15, 640, 368), (320, 320)
MODELS, SEEDS, MASKS, VOLUMES = 12, 3, 4, 199
PREDICTIONS = MODELS * SEEDS * MASKS * VOLUMES

TRAINING_VOLUMES = 973

#: Processor seconds for one volume in revision 5f0b81a, all of them at every call: k-space was hashed for each mask,
#: splits were compared, and eleven metrics were computed.
HASHING_BEFORE, COMPARISON_BEFORE, SCORING_BEFORE = 1.22, 2.04, 30.2


def write_data(folder: Path) -> None:
    """Write a volume, a view of it with a mask, and a prediction as DIRECT writes it."""
    generator = np.random.default_rng(0)
    mask = np.zeros(SHAPE[-1], bool)
    mask[::4] = mask[170:198] = True

    def kspace() -> Iterator[NDArray[np.complex64]]:
        for _ in range(SLICES):
            yield generator.standard_normal((*SHAPE, 2), np.float32).view(np.complex64)[..., 0]

    for name in ("test", "test_equispaced_4x", "predictions"):
        (folder / name).mkdir(parents=True)
    write_volume(folder / "test" / "a.h5", kspace(), {})
    write_view(folder / "test_equispaced_4x" / "a.h5", folder / "test" / "a.h5", mask, {})
    with h5py.File(folder / "predictions" / "a.h5", "w") as file:
        file["reconstruction"] = generator.uniform(0, 1, (SLICES, *CROP)).astype(np.float32)
        file["sampling_mask"] = np.tile(mask.astype(np.float32)[:, None], (SLICES, SHAPE[1], 1, 1))


def describe(folder: Path) -> None:
    """Do what the stage `plan` does with the data."""
    describe_folders([folder / "test_equispaced_4x"], KSpaceMemory(folder / "hashes.json", folder))


def score(folder: Path, metrics: list[str]) -> None:
    """Do what the stage `score` does."""
    volumes = find_volumes(folder / "test_equispaced_4x", folder / "predictions", True)
    score_run({folder / "scores.parquet": volumes}, metrics)


def classical(folder: Path) -> None:
    """Reconstruct one slice by BART with one weight."""
    reconstruct(*next(Acquisition.read(folder / "test_equispaced_4x" / "a.h5")), 0.01)


CALLS: dict[str, Callable[[Path], None]] = {
    "plan: read and hash k-space": describe,
    "plan: repeated": describe,
    "run: check predictions, remove masks": lambda folder: check_predictions(
        folder / "predictions", folder / "test_equispaced_4x"
    ),
    "score: default metrics": lambda folder: score(folder, list(ALWAYS)),
    "score: repeated": lambda folder: score(folder, list(ALWAYS)),
    "score: all other metrics": lambda folder: score(folder, [*METRICS, *BANDS]),
    "BART: one slice, one weight": classical,
}


def size_of(folder: Path) -> float:
    """Return the size of predictions, tables and hashes in MB of 10^6 bytes."""
    files = [*(folder / "predictions").glob("*"), *folder.glob("*.parquet"), *folder.glob("*.json")]
    return sum(path.stat().st_size for path in files) / 1e6


def measure(folder: Path, name: str) -> dict[str, float]:
    """Measure a call in this process, which has done nothing else."""
    before, start = size_of(folder), sum(os.times()[:4])
    memory = extra_megabytes(lambda: CALLS[name](folder))
    return {"seconds": sum(os.times()[:4]) - start, "memory": memory, "disk": size_of(folder) - before}


def tables(results: dict[str, dict[str, float]]) -> str:
    """Return the measured table and the extrapolated one as Markdown."""
    header = ["stage, one volume", "processor time, s", "memory, MB", "disk, MB"]
    measured = markdown_table(header, [[name, *values.values()] for name, values in results.items()])
    volumes = TRAINING_VOLUMES + VOLUMES
    hashing = (TRAINING_VOLUMES + MASKS * VOLUMES) * HASHING_BEFORE + volumes * COMPARISON_BEFORE
    kept = CROP[0] * CROP[1] * SLICES * 4 / 1e6
    removed = -results["run: check predictions, remove masks"]["disk"]

    def hours(seconds: float) -> str:
        return f"{seconds / 3600:.3g}"

    rows = [
        ["plan, core hours", hours(hashing), hours(results["plan: read and hash k-space"]["seconds"] * volumes)],
        ["plan, repeated", hours(hashing), hours(results["plan: repeated"]["seconds"] * volumes)],
        [
            "score, core hours",
            hours(SCORING_BEFORE * PREDICTIONS),
            hours(results["score: default metrics"]["seconds"] * PREDICTIONS),
        ],
        [
            "score, repeated",
            hours(SCORING_BEFORE * PREDICTIONS),
            hours(results["score: repeated"]["seconds"] * PREDICTIONS),
        ],
        ["predictions, TB", f"{(kept + removed) * PREDICTIONS / 1e6:.2f}", f"{kept * PREDICTIONS / 1e6:.2f}"],
    ]
    return f"{measured}\n\n{markdown_table(['whole matrix', 'before', 'now'], rows)}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("performance_results"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
        return
    with TemporaryDirectory() as name:
        write_data(Path(name))
        results = {call: in_fresh_process(__file__, ["--measure", name, call], 1) for call in CALLS}
    write_results(args.output, "benchmark", {"machine": machine(), "results": results}, tables(results))


if __name__ == "__main__":
    main()
