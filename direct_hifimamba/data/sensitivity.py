"""DIRECT's data set `FastMRIWithMaps`: `FastMRI` with sensitivities by ESPIRiT, or with those that files hold.

DIRECT estimates sensitivities with its own three methods alone. So these are put into the sample after DIRECT's
transforms, by :class:`EspiritTransform` or :class:`StoredMapsTransform`, in training, validation, `direct predict` and
`direct-hifimamba reconstruct` alike. They depend on nothing but what the network gets as well: the masked k-space,
cropped, compressed or rotated as the configuration asks for, and its sampling mask.
"""

import hashlib
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

ESPIRIT = "espirit"
STORED = "stored"

KEY = "sensitivity_map"
"""Name of the data set of sensitivities in HDF5 files, complex of shape (slices, coil, height, width)."""

Transform = Callable[[dict[str, Any]], dict[str, Any]]


def transform_steps(transform: Transform) -> list[Any]:
    """Return the single transforms of which DIRECT has composed `transform`, without the wrappers of some of them."""
    return [getattr(step, "_transform", step) for step in getattr(transform, "transforms", ())]


def is_centered(steps: list[Any]) -> bool:
    """Return whether all Fourier transforms in steps of DIRECT have the zero frequency in the centre of k-space."""
    operators = [getattr(step, "backward_operator", None) for step in steps]
    return all(getattr(operator, "keywords", {}).get("centered", True) for operator in operators)


class EspiritTransform:
    """DIRECT's transforms, then sensitivities by ESPIRiT from the masked k-space that they made.

    A single coil gets the sensitivity 1.

    Parameters
    ----------
    transform : callable
        DIRECT's transforms of one sample. Whether they estimate sensitivities makes no difference.
    crop : float
        See :func:`direct_hifimamba.data.espirit.espirit`.
    cache : Path, optional
        Folder to keep the sensitivities in, one file per slice and calibration region, of 8 bytes per coil and pixel.
        A file whose calibration data is not that of the sample is replaced, so that it pays only without random
        augmentations.

    Raises
    ------
    ValueError
        If the transforms have the zero frequency of k-space elsewhere than in the centre.
    """

    def __init__(self, transform: Transform, crop: float = 0.0, cache: Path | None = None) -> None:
        if not is_centered(transform_steps(transform)):
            raise ValueError(
                f"sensitivity_maps is {ESPIRIT}, which needs k-space with the zero frequency in the centre; the "
                "configuration's Fourier transform has centered=False."
            )
        self.transform = transform
        self.crop = crop
        self.cache = cache

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Transform a sample; its `sensitivity_map` is float32 of shape (coil, height, width, 2)."""
        sample = self.transform(sample)
        if "masked_kspace" not in sample or sample["masked_kspace"].ndim != 4:
            raise ValueError(
                f"sensitivity_maps is {ESPIRIT}, which needs masked k-space of one slice; expected transforms_type: "
                "supervised and no kspace_context."
            )
        kspace = torch.view_as_complex(sample["masked_kspace"].contiguous()).numpy()
        if len(kspace) == 1:
            maps = np.ones_like(kspace)
        else:
            mask = sample["sampling_mask"].reshape(-1, kspace.shape[-1]).bool().numpy()
            maps = self._estimate(kspace, np.broadcast_to(mask, kspace.shape[1:]), sample)
        sample["sensitivity_map"] = torch.view_as_real(torch.from_numpy(maps))
        return sample

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform!r}, crop={self.crop}, cache={self.cache})"

    def _estimate(
        self, kspace: NDArray[np.complex64], mask: NDArray[np.bool_], sample: Mapping[str, Any]
    ) -> NDArray[np.complex64]:
        if self.cache is None:
            return espirit(kspace, mask, crop=self.crop)
        region = calibration_region(kspace.shape[1:], mask)
        calibration = kspace[:, *region]
        calibration = calibration / (np.abs(calibration).max() or 1)  # whose scale depends on the rest of the mask
        words = (str(sample["filename"]), int(sample["slice_no"]), kspace.shape, region, self.crop)
        path = self.cache / f"{hashlib.sha256(repr(words).encode()).hexdigest()}.npz"
        if path.exists():
            with np.load(path) as stored:
                known = stored["calibration"]
                if known.shape == calibration.shape and np.allclose(known, calibration, rtol=0, atol=1e-5):
                    return stored["maps"]
        maps = espirit(kspace, mask, crop=self.crop)
        self.cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")  # of this process alone: workers share the folder
        with partial.open("wb") as file:
            np.savez(file, maps=maps, calibration=calibration)
        partial.replace(path)
        return maps


class StoredMapsTransform:
    """DIRECT's transforms of a sample that has a `sensitivity_map`, then that map divided by its norm over the coils.

    It stays zero where it is zero in all coils.

    Parameters
    ----------
    transform : callable
        DIRECT's transforms of one sample.

    Raises
    ------
    ValueError
        If the transforms estimate sensitivities, which would replace the stored ones.
    """

    def __init__(self, transform: Transform) -> None:
        if any(isinstance(step, EstimateSensitivityMapModule) for step in transform_steps(transform)):
            raise ValueError(
                f"sensitivity_maps is {STORED}, and the transforms would estimate others; set "
                "transforms.sensitivity_map_estimation.estimate_sensitivity_maps: false."
            )
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Transform a sample; its `sensitivity_map` is float32 of shape (coil, height, width, 2)."""
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform!r})"


@dataclass
class FastMRIWithMapsConfig(FastMRIConfig):
    """Configuration of :class:`FastMRIWithMapsDataset`."""

    sensitivity_maps: str = ESPIRIT
    espirit_crop: float = 0.0
    map_cache: str | None = None
    map_root: str | None = None


def add_maps(transform: Transform, config: Mapping[Any, Any]) -> Transform:
    """Let DIRECT's transforms end with the sensitivities that a data set's configuration asks for.

    Parameters
    ----------
    transform : callable
    config : mapping
        Of a data set. Without `sensitivity_maps`, as in DIRECT's own data sets, the transforms are returned as they
        are.

    Raises
    ------
    ValueError
        If `sensitivity_maps` is unknown or contradicts the transforms.
    """
    kind = config.get("sensitivity_maps")
    if kind is None:
        return transform
    if kind == ESPIRIT:
        cache = config.get("map_cache")
        return EspiritTransform(transform, config.get("espirit_crop", 0.0), Path(cache) if cache else None)
    if kind == STORED:
        return StoredMapsTransform(transform)
    raise ValueError(f"sensitivity_maps is {kind!r}; expected {ESPIRIT} or {STORED}.")


class FastMRIWithMapsDataset(FastMRIDataset):
    """DIRECT's `FastMRI` data set with other sensitivities than DIRECT estimates.

    Parameters
    ----------
    data_root : Path
    transform : callable, optional
        DIRECT's transforms.
    sensitivity_maps : str
        `espirit`, see :class:`EspiritTransform`; or `stored`: the data set `sensitivity_map` of the files, see
        :class:`StoredMapsTransform`.
    espirit_crop : float
    map_cache : str, optional
        Folder, see :class:`EspiritTransform`.
    map_root : str, optional
        Folder of files of the same names from which stored sensitivities are read. Default: `data_root`.
    pass_h5s : dict, optional
        As in DIRECT's data set.
    **kwargs
        What DIRECT's data set takes.

    Raises
    ------
    ValueError
        If sensitivities are to be read and a file has none.
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
            pass_h5s = {**(pass_h5s or {}), "sensitivity_map": (KEY, Path(map_root or data_root))}
        try:
            super().__init__(data_root=data_root, transform=transform, pass_h5s=pass_h5s, **kwargs)
        except KeyError as error:
            raise ValueError(f"A file in {map_root or data_root} lacks a data set: {error}") from error
