"""What files record about their origin, and folders that may hold files of one origin only."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import direct_hifimamba
from direct_hifimamba.data.formats.hdf5 import read_provenance
from direct_hifimamba.files import PARTIAL_SUFFIX, lock_folder


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of this package and of installed packages, by their names."""
    return {"direct-hifimamba": direct_hifimamba.__version__, **{name: version(name) for name in names}}


@contextmanager
def claim_folder(folder: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Make a folder and lock it; if it exists, it may only hold files whose provenance includes one of `records`.

    Raises
    ------
    NotADirectoryError, FileExistsError
        If it is a file, or holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"The output {folder} is a file; expected a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        for entry in folder.iterdir():
            if entry.name.endswith(PARTIAL_SUFFIX):
                continue
            stored = read_provenance(entry) or {}
            if not any(record.items() <= stored.items() for record in records):
                raise FileExistsError(
                    f"The output folder {folder} already holds {entry.name} of another simulation; choose a new "
                    "folder, or remove this one."
                )
        yield
