"""What files record about their origin, and folders that may hold files of one origin only."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py

import direct_hifimamba
from direct_hifimamba.files import PARTIAL_SUFFIX, lock_folder, replace_when_complete


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of this package and of installed packages, by their names."""
    return {"direct-hifimamba": direct_hifimamba.__version__, **{name: version(name) for name in names}}


def store_provenance(file: h5py.File, provenance: Mapping[str, Any]) -> None:
    """Store where the data of a file come from, as JSON in the attribute `provenance`."""
    file.attrs["provenance"] = json.dumps(dict(provenance), indent=1, sort_keys=True)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what :func:`store_provenance` stored with a file, or None if it did not."""
    try:
        with h5py.File(path) as file:
            return json.loads(file.attrs["provenance"])
    except (OSError, KeyError, ValueError):
        return None


def add_provenance(path: Path, more: Mapping[str, Any]) -> None:
    """Add to what is stored with a file that :func:`read_provenance` can read."""
    provenance = {**(read_provenance(path) or {}), **more}
    with replace_when_complete(path) as partial:
        shutil.copyfile(path, partial)
        with h5py.File(partial, "r+") as file:
            store_provenance(file, provenance)


def read_origin(path: Path) -> dict[str, Any]:
    """Return `origin`, `source` and `subject` of a file as far as they are known.

    Views that an earlier version wrote have none of them; then they are those of the volume that the view links to.
    """
    provenance = read_provenance(path) or {}
    with h5py.File(path) as file:
        link = file.get("kspace", getlink=True)
    if isinstance(link, h5py.ExternalLink):
        provenance = (read_provenance(path.parent / link.filename) or {}) | provenance
    return {key: provenance[key] for key in ("origin", "source", "subject") if provenance.get(key) is not None}


@contextmanager
def claim_folder(folder: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Make a folder and lock it; if it exists, it may only hold files whose provenance includes one of `records`.

    Raises
    ------
    NotADirectoryError, FileExistsError
        If it is a file, or holds other files.
    """
    if folder.exists():
        _check_origin(folder, records)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        _check_origin(folder, records)  # of what another process has written meanwhile
        yield


def _check_origin(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(f"The output {folder} is a file; expected a folder.")
    for entry in folder.iterdir():
        if entry.name.endswith(PARTIAL_SUFFIX):
            continue
        stored = read_provenance(entry) or {}
        if not any(record.items() <= stored.items() for record in records):
            raise FileExistsError(
                f"The output folder {folder} already holds {entry.name} of another simulation; choose a new "
                "folder, or remove this one."
            )
