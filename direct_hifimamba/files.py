"""Atomic replacement of files, checksums, and locks on folders."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PARTIAL_SUFFIX = ".partial"


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; at the end it replaces `path`, after an exception it is removed.

    So `path` is either complete or does not exist.

    Raises
    ------
    OSError
        If HDF5 cannot write, for example because the disk is full. (It raises a RuntimeError when it closes a file.)
    """
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        reason = re.search(r"file write failed.*error message = '(.*?)'", str(error), re.DOTALL)
        if reason is None:
            raise
        raise OSError(f"{path} cannot be written: {reason[1]}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with replace_when_complete(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def fill_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; at the end it becomes `path`, after an exception it is removed.

    If `path` is an empty folder, in which a shell may be, the finished files are moved into it.

    Raises
    ------
    FileExistsError
        If `path` is anything but an empty folder.
    """
    path = path.resolve()  # "." has no name
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; choose a new or empty folder.")
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            for finished in partial.iterdir():
                finished.replace(path / finished.name)
        else:
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder, after waiting until no other process has locked it.

    No file is written, and the system releases the lock when the process ends. Nothing is locked on Windows and on file
    systems without locks, such as some network drives.
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


def refuse_to_replace(output: Path, inputs: Iterable[Path]) -> None:
    """Make sure that writing a file replaces no input.

    Raises
    ------
    FileExistsError
        If `output` is one of `inputs`, under whatever name.
    """
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise FileExistsError(f"The output {output} would replace the input {path}; choose another output.")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a file or folder to `<name>_superseded_<number>`, with the first free number, and return the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}_superseded_{number}")).exists():
        number += 1
    return path.rename(aside)


def first_and_count(names: Sequence[str]) -> str:
    """Return the first name and how many follow it, such as `a.h5 and 3 more`, for an error about many files."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
