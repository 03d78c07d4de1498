"""Files that are either complete or not there, and folders in which one process works at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PARTIAL_SUFFIX = ".partial"


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Path to write to instead of `path`: put in its place at the end, removed if anything is raised before."""
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process has locked a folder, and lock it.

    Nothing is written, and the system releases the lock of a process that dies. Where the file system has no locks,
    as on some network drives, and on Windows, nothing is locked.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process writes to {folder}; waiting until it ends.", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Rename a file or folder to `<name>_superseded_<number>`, with the first number that is free, and return that."""
    number = 1
    while (aside := path.with_name(f"{path.name}_superseded_{number}")).exists():
        number += 1
    return path.rename(aside)
