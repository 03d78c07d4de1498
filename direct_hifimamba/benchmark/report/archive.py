"""Trained models in the form in which DIRECT's model zoo offers them."""

import json
import shutil
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from direct_hifimamba.benchmark.run.runner import Run
from direct_hifimamba.files import PARTIAL_SUFFIX, replace_when_complete
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME

METRICS_NAME = "metrics_inference.json"
"""What `direct predict` calls the metrics that it writes beside its reconstructions."""


def write_archive(folder: Path, archive: Path, run: Run) -> None:
    """Write a folder with checkpoint, config.yaml and metrics_inference.json of a finished run, and the same zipped.

    The metrics are those that `direct predict` has written, under `<acceleration>/<file>` rather than `<file>`.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copy2(run.checkpoint, partial)
    shutil.copy2(run.folder.run / CONFIG_NAME, partial)
    metrics = {
        f"{acceleration}/{file_name}": values
        for acceleration in run.prediction_data
        for file_name, values in _read_metrics(run.folder.predictions(acceleration) / METRICS_NAME).items()
    }
    (partial / METRICS_NAME).write_text(json.dumps(metrics, indent=4), encoding="utf-8")
    with replace_when_complete(archive) as partial_archive, ZipFile(partial_archive, "w", ZIP_DEFLATED) as file:
        for path in sorted(partial.iterdir()):
            file.write(path, f"{folder.name}/{path.name}")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def remove_archive(folder: Path, archive: Path) -> None:
    """Remove what :func:`write_archive` has written, if it has."""
    shutil.rmtree(folder, ignore_errors=True)
    archive.unlink(missing_ok=True)


def _read_metrics(path: Path) -> dict[str, dict[str, float]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # if inference.metrics names none
