"""Data set `FastMRIWithMaps`: DIRECT's `FastMRI` with sensitivities by ESPIRiT, by NLINV, or from files.

DIRECT's list of methods for sensitivities cannot be extended. So :class:`EstimatedMapsTransform` or
:class:`StoredMapsTransform` replaces them after DIRECT's transforms, in training, validation, `direct predict` and
`direct-hifimamba reconstruct`. The estimates use the same data as the network: the masked k-space after all transforms
of the configuration, and its sampling mask.
"""

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import direct.environment  # noqa: F401  # before the data sets' configurations, which import it in a circle
import numpy as np
import torch
from direct.data.datasets import FastMRIDataset
from direct.data.datasets_config import FastMRIConfig
from direct.data.mri_transforms import EstimateSensitivityMapModule
from direct.data.transforms import safe_divide
from numpy.typing import NDArray

from direct_hifimamba.data.espirit import calibration_region, espirit
from direct_hifimamba.data.formats.hdf5 import SENSITIVITY_MAP
from direct_hifimamba.data.nlinv import center, nlinv

ESPIRIT = "espirit"
NLINV = "nlinv"
STORED = "stored"

_VERSION = hashlib.sha256(b"".join(Path(inspect.getfile(f)).read_bytes() for f in (espirit, nlinv))).hexdigest()
"""Version of the estimates, which decides whether stored sensitivities can be used."""

Transform = Callable[[dict[str, Any]], dict[str, Any]]


def transform_steps(transform: Transform) -> list[Any]:
    """Return the single transforms of which DIRECT has composed `transform`, without the wrappers of some of them."""
    return [getattr(step, "_transform", step) for step in getattr(transform, "transforms", ())]


def is_centered(steps: list[Any]) -> bool:
    """Return whether all Fourier transforms in steps of DIRECT have the zero frequency in the centre of k-space."""
    operators = [getattr(step, "backward_operator", None) for step in steps]
    return all(getattr(operator, "keywords", {}).get("centered", True) for operator in operators)


@dataclass(eq=False)
class EstimatedMapsTransform:
    """Transforms of DIRECT, followed by sensitivities by ESPIRiT or NLINV from the masked k-space.

    The sensitivity of a single coil is 1.

    Parameters
    ----------
    transform : callable
        DIRECT's transforms of one sample. Sensitivities that they estimate are replaced.
    method : str
        `espirit`, see :func:`direct_hifimamba.data.espirit.espirit`, or `nlinv`, see
        :func:`direct_hifimamba.data.nlinv.nlinv`.
    crop : float
        Of ESPIRiT.
    cache : Path, optional
        Folder in which sensitivities are stored, one file per slice and region of k-space, of 8 bytes per coil and
        pixel. A file of other samples is replaced, so that the cache saves no time with random augmentations. Files of
        another version of the estimates are not used.

    Raises
    ------
    ValueError
        If the transforms do not have the zero frequency in the centre of k-space.
    """

    transform: Transform
    method: str = ESPIRIT
    crop: float = 0.0
    cache: Path | None = None

    def __post_init__(self) -> None:
        if not is_centered(transform_steps(self.transform)):
            raise ValueError(
                f"sensitivity_maps is {self.method}, which needs k-space with the zero frequency in the centre; the "
                "configuration's Fourier transform has centered=False."
            )

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Transform a sample; its `sensitivity_map` is float32 of shape (coil, height, width, 2).

        Raises
        ------
        ValueError
            If the transforms do not give masked k-space of one slice.
        """
        sample = self.transform(sample)
        if "masked_kspace" not in sample or sample["masked_kspace"].ndim != 4:
            raise ValueError(
                f"sensitivity_maps is {self.method}, which needs masked k-space of one slice; expected "
                "transforms_type: supervised and no kspace_context."
            )
        kspace = torch.view_as_complex(sample["masked_kspace"].contiguous()).numpy()
        if len(kspace) == 1:
            maps = np.ones_like(kspace)
        else:
            mask = sample["sampling_mask"].reshape(-1, kspace.shape[-1]).bool().numpy()
            maps = self._estimate(kspace, np.broadcast_to(mask, kspace.shape[1:]), sample)
        sample["sensitivity_map"] = torch.view_as_real(torch.from_numpy(maps))
        return sample

    def _estimate(
        self, kspace: NDArray[np.complex64], mask: NDArray[np.bool_], sample: Mapping[str, Any]
    ) -> NDArray[np.complex64]:
        def estimate() -> NDArray[np.complex64]:
            return nlinv(kspace, mask) if self.method == NLINV else espirit(kspace, mask, crop=self.crop)

        if self.cache is None:
            return estimate()
        region = center(kspace.shape[1:]) if self.method == NLINV else calibration_region(kspace.shape[1:], mask)
        samples = kspace[:, *region]
        samples = samples / (np.abs(samples).max() or 1)  # the scale depends on all samples
        key = (_VERSION, self.method, self.crop, str(sample["filename"]), int(sample["slice_no"]), kspace.shape, region)
        path = self.cache / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.npz"
        if path.exists():
            with np.load(path) as stored:
                known = stored["samples"]
                if known.shape == samples.shape and np.allclose(known, samples, rtol=0, atol=1e-5):
                    return stored["maps"]
        maps = estimate()
        self.cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")  # one file per process, as workers share the folder
        with partial.open("wb") as file:
            np.savez(file, maps=maps, samples=samples)
        partial.replace(path)
        return maps


@dataclass(eq=False)
class StoredMapsTransform:
    """Transforms of DIRECT, followed by a normalisation of the `sensitivity_map` that the sample has.

    The map is divided by its norm over the coils, and stays zero where it is zero in all coils.

    Parameters
    ----------
    transform : callable
        DIRECT's transforms of one sample.

    Raises
    ------
    ValueError
        If the transforms estimate sensitivities, which would replace the stored ones.
    """

    transform: Transform

    def __post_init__(self) -> None:
        if any(isinstance(step, EstimateSensitivityMapModule) for step in transform_steps(self.transform)):
            raise ValueError(
                f"sensitivity_maps is {STORED}, and the transforms would estimate others; set "
                "transforms.sensitivity_map_estimation.estimate_sensitivity_maps: false."
            )

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Transform a sample; its `sensitivity_map` is float32 of shape (coil, height, width, 2).

        Raises
        ------
        ValueError
            If the map does not have the shape of k-space after the transforms.
        """
        if np.ndim(sample["sensitivity_map"]) == np.ndim(sample["kspace"]) - 1:  # DIRECT adds the axis of a single coil
            sample["sensitivity_map"] = sample["sensitivity_map"][None]
        sample = self.transform(sample)
        maps, kspace = sample["sensitivity_map"], sample["masked_kspace"]
        if maps.shape != kspace.shape:
            raise ValueError(
                f"The sensitivities of {sample['filename']} have the shape {tuple(maps.shape[:-1])} and k-space, after "
                f"the transforms, {tuple(kspace.shape[:-1])}; expected the same (coil, height, width). Stored "
                "sensitivities allow no crop, rescale, pad, compress_coils or pad_coils."
            )
        sample["sensitivity_map"] = safe_divide(maps, maps.square().sum((0, -1), keepdim=True).sqrt())
        return sample


@dataclass
class FastMRIWithMapsConfig(FastMRIConfig):
    """Configuration of :class:`FastMRIWithMapsDataset`."""

    sensitivity_maps: str = ESPIRIT
    espirit_crop: float = 0.0
    map_cache: str | None = None
    map_root: str | None = None


def add_maps(transform: Transform, config: Mapping[Any, Any]) -> Transform:
    """Return DIRECT's transforms followed by the sensitivities of a data set's configuration.

    Parameters
    ----------
    transform : callable
        DIRECT's transforms of one sample.
    config : mapping
        Configuration of a data set. Without the key `sensitivity_maps`, as in DIRECT's own data sets, the transforms
        are returned unchanged.

    Raises
    ------
    ValueError
        If `sensitivity_maps` is unknown or contradicts the transforms.
    """
    kind = config.get("sensitivity_maps")
    if kind is None:
        return transform
    if kind in (ESPIRIT, NLINV):
        cache = config.get("map_cache")
        return EstimatedMapsTransform(transform, kind, config.get("espirit_crop", 0.0), Path(cache) if cache else None)
    if kind == STORED:
        return StoredMapsTransform(transform)
    raise ValueError(f"sensitivity_maps is {kind!r}; expected {ESPIRIT}, {NLINV} or {STORED}.")


class FastMRIWithMapsDataset(FastMRIDataset):
    """Data set `FastMRI` of DIRECT with sensitivities by ESPIRiT, by NLINV or from files.

    Parameters
    ----------
    data_root : Path
        Folder of the HDF5 files.
    transform : callable, optional
        DIRECT's transforms of one sample.
    sensitivity_maps : str
        `espirit` or `nlinv`, see :class:`EstimatedMapsTransform`; or `stored`: the data set `sensitivity_map` of the
        files, see :class:`StoredMapsTransform`.
    espirit_crop : float
        See :func:`direct_hifimamba.data.espirit.espirit`.
    map_cache : str, optional
        Cache folder, see :class:`EstimatedMapsTransform`.
    map_root : str, optional
        Folder of the files with stored sensitivities, which have the same names. Default: `data_root`.
    pass_h5s : dict, optional
        As in DIRECT's data set.
    **kwargs
        Other arguments of DIRECT's data set.

    Raises
    ------
    ValueError
        If a file lacks stored sensitivities, or if the transforms do not fit `sensitivity_maps`.
    """

    def __init__(
        self,
        data_root: Path,
        transform: Transform | None = None,
        sensitivity_maps: str = ESPIRIT,
        espirit_crop: float = 0.0,
        map_cache: str | None = None,
        map_root: str | None = None,
        pass_h5s: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = {"sensitivity_maps": sensitivity_maps, "espirit_crop": espirit_crop, "map_cache": map_cache}
        if transform is not None:
            transform = add_maps(transform, config)
        if sensitivity_maps == STORED:
            pass_h5s = {**(pass_h5s or {}), "sensitivity_map": (SENSITIVITY_MAP, Path(map_root or data_root))}
        try:
            super().__init__(data_root=data_root, transform=transform, pass_h5s=pass_h5s, **kwargs)
        except KeyError as error:
            raise ValueError(f"A file in {map_root or data_root} lacks a data set: {error}") from error
