"""Scores as long tables in Parquet files.

The table of a run has the columns `file`, `slice`, `metric` and `value`, and lies beside its predictions. The bands of
the error spectrum are the metrics `spectrum_0`, `spectrum_1` ...; they belong to whole volumes, so their slice is null.
A score that is not defined is null. The table of a benchmark has the columns `model`, `seed` and `acceleration` too;
the seed of a reconstruction without training is null.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from direct_hifimamba.benchmark.score.metrics import METRICS, Array
from direct_hifimamba.benchmark.score.spectrum import BANDS
from direct_hifimamba.files import hash_file, replace_when_complete

RUN_SCHEMA = pa.schema([("file", pa.string()), ("slice", pa.int32()), ("metric", pa.string()), ("value", pa.float64())])
SCHEMA = pa.schema([("model", pa.string()), ("seed", pa.int64()), ("acceleration", pa.string()), *RUN_SCHEMA])
_METADATA = b"scored"


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a table of scores.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, or no such table.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it; the benchmark's command writes it again.") from error
    if not table.schema.equals(schema):
        columns = [f"{field.name} ({field.type})" for field in table.schema]
        expected = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(f"{path} has the columns {', '.join(columns)}; expected a table of scores with {expected}.")
    return table


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table of scores completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def fingerprint(path: Path, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return size, time of modification and SHA-256 of a file, which is read only if `known` has others of these."""
    status = path.stat()
    found: dict[str, Any] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if known is not None and all(known.get(key) == value for key, value in found.items()):
        return dict(known)
    return found | {"sha256": hash_file(path)}


@dataclass(frozen=True)
class RunTable:
    """The table of one run at one acceleration, and what its scores were computed from.

    Attributes
    ----------
    table : pyarrow.Table
    files : mapping
        Fingerprints of what was scored.
    metrics : mapping
        Definitions of the metrics.
    """

    table: pa.Table
    files: Mapping[str, dict[str, Any]]
    metrics: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a table, an empty one if there is no file.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        if not path.exists():
            return cls(RUN_SCHEMA.empty_table(), {}, {})
        table = read_table(path, RUN_SCHEMA)
        if _METADATA not in (table.schema.metadata or {}):
            raise ValueError(
                f"{path} does not say what it was computed from. Remove it; the same command scores again."
            )
        return cls(table, **json.loads(table.schema.metadata[_METADATA]))

    def write(self, path: Path) -> None:
        """Write the table."""
        record = json.dumps({"files": self.files, "metrics": self.metrics})
        write_table(path, self.table.replace_schema_metadata({_METADATA: record}))

    def update(self, contents: Mapping[str, Path], metrics: Mapping[str, str]) -> tuple[Self, list[str]]:
        """Return the part of the table that still holds, and the metrics that have to be computed.

        Parameters
        ----------
        contents : mapping
            What is scored, by file. If any of it has changed, nothing holds.
        metrics : mapping
            Definitions by name. Metrics that are not asked for are kept.
        """
        files = {file: fingerprint(path, self.files.get(file)) for file, path in contents.items()}
        is_same = [found["sha256"] for found in files.values()] == [
            self.files.get(file, {}).get("sha256") for file in files
        ]
        kept = {name: old for name, old in self.metrics.items() if is_same and metrics.get(name, old) == old}
        return type(self)(self.select(kept), files, kept), [name for name in metrics if name not in kept]

    def extend(self, scores: Mapping[str, Mapping[str, Array]], metrics: Mapping[str, str]) -> Self:
        """Return the table with more scores, by file and metric."""
        table = pa.concat_tables([self.table, make_table(scores)])
        return type(self)(table, self.files, {**self.metrics, **metrics})

    def select(self, metrics: Iterable[str]) -> pa.Table:
        """Return the rows of these metrics."""
        rows = pc.is_in(self.table["metric"], pa.array(list(metrics), pa.string()))
        return self.table.filter(rows).replace_schema_metadata(None)


def make_table(scores: Mapping[str, Mapping[str, Array]]) -> pa.Table:
    """Return the table of a run with scores by file and metric, arrays of shape (slices,)."""
    columns: dict[str, list[Any]] = {name: [] for name in RUN_SCHEMA.names}
    for file, by_metric in scores.items():
        for metric, values in by_metric.items():
            columns["file"] += [file] * len(values)
            columns["slice"] += [None] if metric in BANDS else range(len(values))
            columns["metric"] += [metric] * len(values)
            columns["value"] += [value if np.isfinite(value) else None for value in values.tolist()]
    return pa.table(columns, RUN_SCHEMA)


class Scores:
    """Scores of all runs of a benchmark, or of several.

    Parameters
    ----------
    table : pyarrow.Table
        With the columns of `SCHEMA`. A run has its slices in order.

    Attributes
    ----------
    models, accelerations, metrics : list of str
        That have a score.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        keys = ["model", "acceleration", "metric", "seed", "file"]
        grouped = table.group_by(keys, use_threads=False).aggregate([("value", "list")])
        self._slices: dict[tuple[str, str, str], dict[int | None, dict[str, Array]]] = {}
        for row in grouped.to_pylist():
            seeds = self._slices.setdefault((row["model"], row["acceleration"], row["metric"]), {})
            values = np.array(row["value_list"], np.float64)  # null becomes NaN
            seeds.setdefault(row["seed"], {})[row["file"]] = values
        self.models, self.accelerations = (list(dict.fromkeys(key[part] for key in self._slices)) for part in (0, 1))
        metrics = {metric for _, _, metric in self._slices}
        self.metrics = [name for name in METRICS if name in metrics]

    @classmethod
    def join(cls, tables: Mapping[tuple[str, int | None, str], pa.Table]) -> Self:
        """Put the tables of runs together, by model, seed and acceleration."""
        parts = []
        for (model, seed, acceleration), table in tables.items():
            count = len(table)
            added = [pa.array([model] * count), pa.array([seed] * count, pa.int64()), pa.array([acceleration] * count)]
            parts.append(pa.Table.from_arrays([*added, *table.columns], schema=SCHEMA))
        return cls(pa.concat_tables(parts) if parts else SCHEMA.empty_table())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` has written; raises OSError or ValueError, see :func:`read_table`."""
        return cls(read_table(path, SCHEMA))

    def save(self, path: Path) -> None:
        """Write the table to a Parquet file."""
        write_table(path, self.table)

    def of_model(self, model: str, label: str) -> pa.Table:
        """Return the rows of a model, under another label."""
        rows = self.table.filter(pc.equal(self.table["model"], model))
        return rows.set_column(0, SCHEMA.field("model"), pa.array([label] * len(rows), pa.string()))

    def seeds(self, model: str, acceleration: str) -> list[int | None]:
        """Return the seeds of the runs that were scored; [None] without training, [] if there is no run."""
        found = (seeds for key, seeds in self._slices.items() if key[:2] == (model, acceleration))
        return list(dict.fromkeys(seed for seeds in found for seed in seeds))

    def slices(self, model: str, acceleration: str, metric: str) -> dict[int | None, dict[str, Array]]:
        """Return the scores of slices by seed and file, arrays of shape (slices,), NaN where one is not defined."""
        return self._slices.get((model, acceleration, metric), {})

    def volumes(self, model: str, acceleration: str, metric: str) -> dict[int | None, dict[str, float]]:
        """Return the scores of volumes by seed and file, NaN where one is not defined."""
        combine = METRICS[metric].of_volume if metric in METRICS else lambda values: float(values[0])
        return {
            seed: {file: combine(values) for file, values in files.items()}
            for seed, files in self.slices(model, acceleration, metric).items()
        }
