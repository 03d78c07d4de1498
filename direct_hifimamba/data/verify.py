"""Compare a prepared data set with its protocol: checksums, masks, missing and additional files."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from direct_hifimamba.data.formats import hdf5
from direct_hifimamba.data.masks import MaskOptions, draw_mask
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.data.protocol import FILE_NAME, Settings, list_name, list_of, read_protocol
from direct_hifimamba.data.provenance import read_provenance

_PROVENANCE = ("source", "slices", "dropped", "versions")


class Task(NamedTuple):
    """Prepared file and its record in the protocol."""

    settings: Settings
    dest: Path
    split: str
    name: str
    record: dict[str, Any]


def verify_file(task: Task) -> list[str]:
    """Return the problems of a prepared file, or, if it has none, of the files with its masks."""
    problems = [f"{task.split}/{task.name} {problem}" for problem in _guard(_check_volume, task)]
    if problems:
        return problems
    for folder, options in task.settings.mask_folders(task.split).items():
        path = task.dest / folder / task.record["masks"][folder]["file"]
        problems += [f"{folder}/{path.name} {problem}" for problem in _guard(_check_mask, task, path, options)]
    return problems


def _guard(check: Any, *arguments: Any) -> Iterator[str]:
    try:
        yield from check(*arguments)
    except FileNotFoundError:
        yield "is missing"
    except (OSError, KeyError, ValueError) as error:
        yield f"cannot be read: {error}"


def _check_volume(task: Task) -> Iterator[str]:
    path = task.dest / task.split / task.name
    record = task.record
    provenance = read_provenance(path) or {}
    with h5py.File(path) as file:
        for link in hdf5.missing_links(file["kspace"]):
            yield f"links to {link}, which is not there; put it back, or prepare with --copy"
            return
        if list(hdf5.kspace_shape(file)) != record["shape"]:
            yield f"has k-space of shape {hdf5.kspace_shape(file)}, not {tuple(record['shape'])}"
        elif hdf5.hash_content(file) != record["sha256"]:
            yield "has other k-space, or another header, than was prepared"
        attributes = {name: file.attrs[name] for name in ("max", "norm", "sha256")}
    stored = attributes | provenance
    # Earlier versions stored neither subject nor acquisition.
    new = [name for name in ("subject", "acquisition") if name in provenance]
    if any(stored.get(name) != record.get(name) for name in (*attributes, *_PROVENANCE, *new)):
        yield f"has attributes that differ from {FILE_NAME}"


def _check_mask(task: Task, path: Path, options: MaskOptions) -> Iterator[str]:
    volume = task.dest / task.split / task.name
    with h5py.File(volume) as original:
        acquired = hdf5.acquired_columns(original)
    draw = partial(draw_mask, options, task.record["shape"][-2:], task.name, task.settings.seed)
    expected = draw(acquired)
    known = [expected]
    with suppress(ValueError):  # without the padding, not every mask leaves a gap on either side of its centre
        known.append(draw())
    with h5py.File(path) as file:
        is_view = path.suffix != hdf5.CMRXRECON_SUFFIX
        mask = file["mask"][()] if is_view else file["mask"][()].T
        center = file["acs_mask"][()] if is_view and not expected.is_line_mask else expected.center
        # Earlier versions stored masks and their figures as they were drawn, padding included.
        is_known = any(np.array_equal(mask, drawn.samples) for drawn in known)
        if not (is_known and np.array_equal(center, expected.center)):
            yield f"has another mask than {options} gives"
        figures = task.record["masks"][path.parent.name].items()
        if not any(drawn.provenance().items() <= figures for drawn in known):
            yield f"has other figures of its mask than {FILE_NAME}"
        if is_view:
            link = file.get("kspace", getlink=True)
            is_same = isinstance(link, h5py.ExternalLink) and (path.parent / link.filename).samefile(volume)
        else:
            with h5py.File(volume) as original:
                pairs = zip(hdf5.read_slices(file), hdf5.read_slices(original), strict=True)
                is_same = all(np.array_equal(*pair) for pair in pairs)
        if not is_same:
            yield f"does not have the k-space of {task.split}/{task.name}"


def verify(dest: Path, jobs: int = 1) -> list[str]:
    """Return the problems of a prepared data set.

    Parameters
    ----------
    dest : Path
    jobs : int
        Number of processes.

    Returns
    -------
    list of str
        One sentence for every problem; empty if everything agrees with the protocol.

    Raises
    ------
    ValueError
        If the folder is no prepared data set.
    """
    protocol = read_protocol(dest)
    if protocol is None:
        raise ValueError(f"{dest} has no {FILE_NAME}; expected a folder that direct-hifimamba prepare has written.")
    settings = Settings.from_json(protocol["settings"])
    tasks = [
        Task(settings, dest, split, name, record)
        for split, content in protocol["splits"].items()
        for name, record in content["files"].items()
    ]
    problems = [problem for found in map_files(verify_file, tasks, jobs, "verify") for problem in found]
    expected = {FILE_NAME}
    for task in tasks:
        expected.add(f"{task.split}/{task.name}")
        expected.update(f"{folder}/{mask['file']}" for folder, mask in task.record["masks"].items())
    for split, content in protocol["splits"].items():
        expected.add(list_name(split))
        path = dest / list_name(split)
        if not path.exists() or path.read_text(encoding="utf-8") != list_of(content["files"]):
            problems.append(f"{list_name(split)} is not the list of the files of {split}")
        problems += [f"{name} could not be prepared: {reason}" for name, reason in content["failed"].items()]
    found = {path.relative_to(dest).as_posix() for path in dest.rglob("*") if not path.is_dir()}
    problems += [f"{name} is not in {FILE_NAME}" for name in sorted(found - expected)]
    if not tasks:
        problems.append("nothing is prepared yet; run direct-hifimamba prepare again")
    return problems
