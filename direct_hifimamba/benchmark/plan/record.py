"""The plan of a benchmark in its folder, and what may differ from it later."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import find_difference
from direct_hifimamba.benchmark.plan.hashes import KSpaceMemory, describe_folders
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.files import write_text
from direct_hifimamba.plugin import serves

_FREE_KEYS = ("name", "description", "baseline", "data", "configs", "metrics", "classical", "validations")
"""Keys on which no trained model depends; of data and configurations, the content is compared instead."""


def read_plan(folder: BenchmarkFolder) -> dict[str, Any]:
    """Return what :func:`record` has written to `plan.json`.

    Raises
    ------
    FileNotFoundError
        If there is no plan.
    """
    if not folder.plan.exists():
        raise FileNotFoundError(f"{folder.plan} is missing; make it with --stage plan.")
    plan: dict[str, Any] = json.loads(folder.plan.read_text(encoding="utf-8"))
    return plan


def record(
    folder: BenchmarkFolder, specification: Specification, inputs: Mapping[str, Any], runs: Sequence[Any]
) -> None:
    """Write specification and plan, after :func:`check_same`.

    Parameters
    ----------
    folder : BenchmarkFolder
    specification : Specification
    inputs : dict
        See :func:`describe_inputs`.
    runs : sequence of PlannedRun

    Raises
    ------
    ValueError
        As :func:`check_same`, or if the folder holds something else.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.plan.exists() and folder.specification.exists():
        check_same(folder, specification, inputs)
    elif any(not path.name.startswith(".") and path != folder.hashes for path in folder.path.iterdir()):
        raise ValueError(f"{folder.path} holds something else; choose an empty or new folder as --output.")
    content = json.dumps({"runs": [asdict(run) for run in runs], **inputs}, indent=1)
    write_text(folder.plan, f"{content}\n")
    write_text(folder.specification, specification.to_yaml(folder.path))


def check_same(folder: BenchmarkFolder, specification: Specification, inputs: Mapping[str, Any]) -> None:
    """Make sure that the benchmark in a folder was planned with the same specification and inputs.

    Models and seeds can be added, `_FREE_KEYS` changed, and data, configurations and results moved.

    Raises
    ------
    ValueError
        If anything else differs; the first difference is named.
    """
    texts = folder.specification.read_text(encoding="utf-8"), specification.to_yaml(folder.path)
    before, now = ({"specification": yaml.safe_load(text)} for text in texts)
    before |= read_plan(folder)
    now |= json.loads(json.dumps(inputs))  # as the plan is stored
    added = [label for label in now["models"] if label not in before["models"]]
    if added and specification.has_minutes:
        raise ValueError(
            f"{folder.path} was begun without the model {added[0]}, which cannot be added: the iterations of a budget "
            "of minutes come from times that were measured side by side. Choose another --output."
        )
    has_network = any(_is_own(configs) for configs in before["models"].values())
    for described in (before, now):
        described.pop("runs", None)
        values = described["specification"]
        for key in _FREE_KEYS:
            values.pop(key, None)
        values["accelerations"] = list(values["accelerations"])
        values["seeds"] = values["seeds"][:1]  # the search's
        for model in values["models"].values():
            model.pop("configs")
        for label in added:
            values["models"].pop(label, None)
            described["models"].pop(label, None)
        if not has_network:
            described["code"].pop("network", None)
    difference = find_difference(before, now)
    if difference is not None:
        key, stored, current = difference
        remedy = "Finish with the version that it was begun with" if key.startswith("code.") else "Change it back"
        raise ValueError(
            f"{folder.path} was begun with other settings: {key} was {_short(stored)} and is {_short(current)}. "
            f"{remedy}, or choose another --output."
        )


def check_unchanged(folder: BenchmarkFolder, data: Path, names: Sequence[str]) -> None:
    """Make sure that the data of a run are those of the plan; files of the same size and time are not read.

    Parameters
    ----------
    folder : BenchmarkFolder
    data : Path
        Prepared folder.
    names : sequence of str
        Names of the folders in it.

    Raises
    ------
    OSError
        If a folder is missing on this machine.
    ValueError
        If a file has changed since the plan was made; the first one is named.
    """
    memory = KSpaceMemory(folder.hashes, data, read_only=True)
    found = describe_folders([data / name for name in names], memory)
    planned = read_plan(folder)["data"]
    difference = find_difference({name: planned[name] for name in names}, found)
    if difference is not None:
        raise ValueError(
            f"{data} has changed since {folder.plan} was written: {difference[0]} was {_short(difference[1])} and is "
            f"{_short(difference[2])}. Restore the file, or choose another --output."
        )


def _is_own(configs: Mapping[str, Any]) -> bool:
    """Return whether a network of this package is part of a model, such as one that refines sensitivities."""
    networks = [
        network
        for config in configs.values()
        for network in (config["model"], *(config.get("additional_models") or {}).values())
    ]
    return any(serves(network["model_name"]) for network in networks)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
