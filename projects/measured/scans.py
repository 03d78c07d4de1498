"""Measured k-space by name: read from a folder, or downloaded from where it is published.

`registry.yaml` names every scan with its public place (repository, commit, path), checksums and licence. The folder in
the environment variable DIRECT_HIFIMAMBA_MEASURED, where it is set, holds `NAME.npy` with the axes (slice, coil,
height, width). Other scans are downloaded by pooch, if `registry.yaml` says how the published file is read (`axes` of
its array, or `transpose` of what our reader returns), and kept in pooch's cache.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from direct_hifimamba.data.formats.registry import read

FOLDER_VARIABLE = "DIRECT_HIFIMAMBA_MEASURED"
PUBLIC = "https://raw.githubusercontent.com"
"""Server of the repositories: files are at <PUBLIC>/<repository>/<commit>/<path>."""

SCANS = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(Path(__file__).parent / "registry.yaml")))


class UnavailableError(OSError):
    """A scan is neither in the folder nor can it be downloaded."""


def load_scan(name: str) -> NDArray[np.complex64]:
    """Return the k-space of a scan, shape (slices, coils, height, width), zero frequency at index length // 2.

    Raises
    ------
    UnavailableError
        If the scan is not in the folder and cannot be downloaded.
    ValueError
        If the name is unknown, or if a file is not the one of the registry.
    """
    if name not in SCANS:
        raise ValueError(f"There is no scan {name!r}; expected one of {', '.join(SCANS)}.")
    scan = SCANS[name]
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and (path := Path(folder, f"{name}.npy")).exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() != scan["sha256"]:
            raise ValueError(f"{path} is not the file of the registry: its SHA-256 is not {scan['sha256']}.")
        kspace: NDArray[np.complex64] = np.load(path)
    elif "axes" in scan or "transpose" in scan:
        raw = read(_download(name), scan.get("axes"))
        kspace = np.stack(list(raw.slices()))
        kspace = kspace.swapaxes(-2, -1) if scan.get("transpose") else kspace
    else:
        raise UnavailableError(
            f"{name} is read from a folder alone, as there is no tested reader of the published file; set "
            f"{FOLDER_VARIABLE} to a folder with {name}.npy."
        )
    if list(kspace.shape) != scan["shape"]:
        raise ValueError(f"k-space of {name} has the shape {kspace.shape}; expected {scan['shape']}.")
    return np.ascontiguousarray(kspace)


def _download(name: str) -> Path:
    """Return the published file of a scan in pooch's cache, downloaded if need be, with the checksum compared."""
    try:
        import pooch
    except ImportError as error:
        raise UnavailableError(f"{name} is downloaded by pooch: pip install 'direct-hifimamba[measured]'.") from error
    (source,) = SCANS[name]["sources"]
    file = f"{name}{Path(source['path']).suffix}"
    cache = pooch.create(
        pooch.os_cache("direct_hifimamba"),
        base_url="",
        registry={file: f"sha256:{source['sha256']}"},
        urls={file: f"{PUBLIC}/{source['repository']}/{source['commit']}/{quote(source['path'])}"},
    )
    try:
        return Path(cache.fetch(file))
    except (OSError, ValueError) as error:  # those of requests are OSErrors; another file is a ValueError of pooch
        raise UnavailableError(
            f"{name} cannot be downloaded from {cache.get_url(file)} ({type(error).__name__}: {error}); set "
            f"{FOLDER_VARIABLE} to a folder with {name}.npy."
        ) from error
