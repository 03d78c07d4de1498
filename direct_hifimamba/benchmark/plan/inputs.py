"""What all models of a benchmark are trained and tested on, as hashes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from direct_hifimamba.benchmark.plan.configurations import find_difference
from direct_hifimamba.benchmark.plan.hashes import KSpaceMemory, describe_folders, list_files
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.provenance import describe_code
from direct_hifimamba.data.protocol import FILE_NAME as PROTOCOL
from direct_hifimamba.data.provenance import read_origin
from direct_hifimamba.files import hash_file


def describe_data(
    specification: Specification, memory: KSpaceMemory, jobs: int = 1, verify: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """Describe the data of a benchmark as :func:`describe_folders` does.

    Raises
    ------
    OSError
        If a folder is missing.
    ValueError
        If learning rates would be searched for on the test split, if a folder is empty, if a file lacks its mask, is
        damaged or undersampled, if accelerations differ in their volumes, or if two splits share a subject, a file of
        the download, or a slice.
    """
    splits = specification.splits
    if specification.search is not None and splits.validation == splits.test:
        raise ValueError(
            f"The splits validation and test are both {splits.test!r}, and the search would choose learning rates on "
            "the test data. Name another validation split (prepare --divide makes one), or leave the search out."
        )
    folders = {splits.training: specification.data / splits.training}
    for split in (splits.validation, splits.test):
        for acceleration in specification.accelerations:
            folder = specification.folder(split, acceleration)
            if folder.name == splits.training:
                raise ValueError(f"The models would be trained on {folder.name}, a folder of the split {split}.")
            folders[folder.name] = folder
    data = describe_folders(list(folders.values()), memory, jobs, verify)
    for name, files in data.items():
        lacking = [file for file, described in files.items() if described["mask"] is None]
        if lacking and name != splits.training:
            raise ValueError(
                f"{name}/{lacking[0]} has no sampling mask; masks of the validation and the test split have to be "
                "stored, as direct-hifimamba prepare and simulate --mask do."
            )
    for split in (splits.validation, splits.test):
        _check_volumes({name: data[name] for name in (f"{split}_{suffix}" for suffix in specification.accelerations)})
    first = next(iter(specification.accelerations))
    evaluated = (specification.folder(split, first) for split in (splits.validation, splits.test))
    compared = list(dict.fromkeys([folders[splits.training], *evaluated]))
    _check_disjoint({folder: data[folder.name] for folder in compared}, memory.slices)
    return data


def _check_volumes(folders: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that folders that differ in their masks do not differ in their k-space."""
    (first, reference), *others = (
        (folder, {name: described["sha256"] for name, described in files.items()}) for folder, files in folders.items()
    )
    for folder, files in others:
        difference = find_difference(reference, files)
        if difference is not None:
            raise ValueError(
                f"{difference[0]} does not have the same k-space in {first} and {folder}, or is in one of them only; "
                "accelerations are compared on the same volumes. Prepare the data again."
            )


def _check_disjoint(folders: Mapping[Path, Mapping[str, Any]], slices: Mapping[str, Sequence[str]]) -> None:
    """Make sure that no subject, no file of the download and no slice is in two folders.

    Parameters
    ----------
    folders : mapping
        The described files of each folder.
    slices : mapping
        Hashes of slices by that of their k-space.
    """
    owners: dict[tuple[str, str], str] = {}
    for folder, files in folders.items():
        found: dict[tuple[str, str], str] = {}
        for file, described in files.items():
            origin = read_origin(folder / file)
            identities = {("k-space of a slice", digest) for digest in slices[described["sha256"]]}
            identities.add(("subject", str(origin.get("subject", ""))))
            identities.add(("source (SHA-256)", str(origin.get("source", {}).get("sha256", ""))))
            found |= {identity: f"{folder.name}/{file}" for identity in identities if identity[1]}
        for identity in sorted(owners.keys() & found.keys()):
            raise ValueError(
                f"{found[identity]} and {owners[identity]} have the same {', '.join(identity)}; training, validation "
                "and test have to be different subjects. Remove one of them, and prepare the data again."
            )
        owners |= found


def describe_inputs(
    specification: Specification,
    composed: Mapping[str, Mapping[str, DictConfig]],
    data: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Return everything that all models share, the configurations of all, and the code that runs them, as JSON has it.

    Parameters
    ----------
    specification : Specification
    composed : dict
        See :func:`direct_hifimamba.benchmark.plan.configurations.compose_models`.
    data : dict
        See :func:`describe_data`.
    """
    protocol = specification.data / PROTOCOL
    folders = [specification.folder(specification.splits.test, name) for name in specification.accelerations]
    origins = {path: read_origin(path) for folder in folders for path in list_files(folder)}
    tested = {path.name: origin for path, origin in origins.items() if path.parent == folders[0]}
    sources = {name: origin.get("source", {}) for name, origin in tested.items()}
    return {
        "data": data,
        "protocol": hash_file(protocol) if protocol.exists() else None,
        "origin": ", ".join(sorted({str(origin.get("origin", "unknown")) for origin in origins.values()})),
        # What other files of a split are not independent of: the subject or the image of which a file holds slices.
        "groups": {
            name: str(origin.get("subject") or sources[name].get("name") or name) for name, origin in tested.items()
        },
        "sources": {name: source["sha256"] for name, source in sources.items() if "sha256" in source},
        "code": describe_code(),
        "models": {
            label: {acceleration: OmegaConf.to_container(config) for acceleration, config in configs.items()}
            for label, configs in composed.items()
        },
    }
