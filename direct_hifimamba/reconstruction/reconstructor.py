"""Reconstruct the undersampled k-space of one file with a model that DIRECT has trained, ours or any other.

The checkpoint's own configuration, which `direct train` leaves beside it, says how k-space is scaled and coil
sensitivities are estimated: its section `inference` is applied as in `direct predict`, with the given mask. Options
that make no sense for undersampled k-space, or with which DIRECT's images are wrong, are refused (docs/reconstruct.md).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from direct.engine import Engine
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch.utils.data import default_collate

# isort: split
from direct.data.datasets import CMRxReconDataset  # which cannot be imported before direct.environment
from direct.data.transforms import center_crop, expand_operator, modulus
from direct.inference import build_inference_transforms

from direct_hifimamba.data.acquisition import KSpaceSummary, summarise
from direct_hifimamba.data.center import center_block
from direct_hifimamba.data.checks import check_acquisition, check_image_origin
from direct_hifimamba.data.sensitivity import STORED, EstimatedMapsTransform, add_maps
from direct_hifimamba.nn.layers.sense import find_fourier_convention
from direct_hifimamba.reconstruction.domain import Domain, OutsideDomainWarning
from direct_hifimamba.reconstruction.engines import estimates_maps, find_config, load_engines
from direct_hifimamba.reconstruction.pretrained import find_pretrained

FLIPS = ((), (-2,), (-1,), (-2, -1))
"""Axes of an image along which it is flipped, itself first."""


class SliceAnalysis(NamedTuple):
    """The image of a slice by each member of an ensemble, and what the mean of their k-space leaves unexplained."""

    images: NDArray[np.complex64]  #: (members, height, width), in the units of the image
    #: (coils, height, width), samples less those of the members' mean, in the units of k-space; 0 where nothing was
    #: sampled
    residual: NDArray[np.complex64]

    @property
    def image(self) -> NDArray[np.complex64]:
        """The image of the ensemble, (height, width)."""
        return combine_members(self.images)


def combine_members(images: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
    """Return the image of an ensemble: the mean magnitude of its members, with the phase of their mean if complex.

    Where there is little signal, the phases of the members are random. The mean of complex images would be too dark
    there, as the networks are trained towards magnitudes that contain noise.

    Parameters
    ----------
    images : sequence of arrays of shape (height, width), or array of shape (members, height, width)
        Complex images, or their magnitudes.

    Returns
    -------
    array of shape (height, width)
        Of the type of `images`.
    """
    first = np.asarray(images[0])
    if len(images) == 1:
        return first
    magnitude = np.mean(np.abs(images), axis=0)
    if np.iscomplexobj(first):
        magnitude = magnitude * np.exp(1j * np.angle(np.sum(images, axis=0)))
    return magnitude.astype(first.dtype)


class _Output(NamedTuple):
    image: NDArray[Any]  #: (height, width), complex or its magnitude
    kspace: NDArray[np.complex64] | None = None  #: (coils, height, width), that of the image in all coils, if asked for


class Reconstructor:
    """A trained model, ready to reconstruct, from several threads at a time if need be.

    Parameters
    ----------
    engines : sequence of direct.engine.Engine
        With the weights loaded. Of several, such as of several seeds of one training, the image is that of
        :func:`combine_members`.
    dataset : DictConfig
        `inference.dataset` of the configuration. Only its transforms are used, without their masking, and its name.
    crop : str, optional
        `inference.crop` of the configuration: `header`, to crop images to the size that a file asks for.
    domain : Domain, optional
        K-space that the model was trained with. For other k-space there is an :class:`OutsideDomainWarning`.
    flips : bool
        Whether each network also reconstructs the slice flipped vertically, horizontally and both, and the image is the
        mean of the four, flipped back. It takes four times as long.

    Attributes
    ----------
    members : int
        Number of images whose mean is the result: one for each network, or four with `flips`.
    needs_sensitivity_map : bool
        Whether the configuration takes coil sensitivities as given instead of estimating them.
    centered : bool
        Whether the configuration's Fourier transform has the origin of the image in the middle.

    Examples
    --------
    >>> reconstructor = Reconstructor.from_pretrained("multicoil")
    >>> images = reconstructor(kspace, mask)
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        dataset: DictConfig,
        crop: str | None = None,
        domain: Domain | None = None,
        flips: bool = False,
    ) -> None:
        self._engines = tuple(engines)
        self._flips = FLIPS if flips else FLIPS[:1]
        self.members = len(self._engines) * len(self._flips)
        for engine in self._engines:
            engine.ndim = 2
            engine.models_to_device()
            engine.models_validation_mode()
        self.domain = domain
        transform = build_inference_transforms(SimpleNamespace(engine=engine), None, dataset)
        self._transform = add_maps(transform, dict(dataset) | {"map_cache": None})  # a cache is for epochs
        self.needs_sensitivity_map = dataset.get("sensitivity_maps") == STORED
        self._crop = crop
        transforms = dataset.transforms
        self._estimates = estimates_maps(transforms)
        self._needs_other_center = transforms.normalization.scaling_key == "acs_kspace" or transforms.use_acs_as_mask
        self._compresses_coils = bool(transforms.compress_coils)
        # DIRECT's reader takes as many columns as centre whatever the mask is.
        self._center_columns = CMRxReconDataset.NUM_ACS_LINES if dataset.name == "CMRxRecon" else None
        self._pad_coils = transforms.pad_coils
        self._needs_all_kspace = ["scaling_key: kspace"] * (transforms.normalization.scaling_key == "kspace")
        self._needs_all_kspace += ["compress_coils"] * self._compresses_coils
        engine = self._engines[0]
        self.centered = find_fourier_convention(engine.forward_operator, engine.backward_operator).centered

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str | Sequence[Path | str],
        config_path: Path | str | None = None,
        device: str = "auto",
        flips: bool = False,
    ) -> Self:
        """Build the model of a checkpoint and load its weights.

        Parameters
        ----------
        path : Path or str, or sequence of them
            A checkpoint that `direct train` has written, `model_<iteration>.pt`. Several make an ensemble, see
            :func:`combine_members`.
        config_path : Path or str, optional
            Configuration. Default: `config.yaml` beside the checkpoint; of several, they have to be the same.
        device : str
            `cpu`, `cuda` or `mps`; `auto` takes a GPU where PyTorch finds one.
        flips : bool
            As in :class:`Reconstructor`.

        Returns
        -------
        Reconstructor

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If the configuration is incomplete or wrong, if the checkpoint does not fit it, or if weights are not
            finite.
        """
        paths = [Path(path)] if isinstance(path, str | Path) else list(map(Path, path))
        return cls(*load_engines(paths, find_config(paths, config_path), device), flips=flips)

    @classmethod
    def from_pretrained(
        cls, name: str, config_path: Path | str | None = None, device: str = "auto", flips: bool | None = None
    ) -> Self:
        """Build a model with weights that are part of the package.

        Parameters
        ----------
        name : str
            `direct-hifimamba weights` lists the names.
        config_path : Path or str, optional
            Configuration. Default: that of the training.
        device : str
            `cpu`, `cuda` or `mps`; `auto` takes a GPU where PyTorch finds one.
        flips : bool, optional
            As in :class:`Reconstructor`. Default: as the model card says.

        Returns
        -------
        Reconstructor

        Raises
        ------
        ValueError
            If the name is unknown, if a file is not the one of the release, or if the configuration does not fit.
        """
        pretrained = find_pretrained(name)
        path = pretrained.config_path if config_path is None else Path(config_path)
        flips = pretrained.flips if flips is None else flips
        return cls(*load_engines(pretrained.checkpoints, path, device), pretrained.domain, flips)

    @property
    def network(self) -> torch.nn.Module:
        """The model itself; of several, the first one."""
        return self._engines[0].model

    @torch.no_grad()
    def __call__(
        self,
        kspace: NDArray[Any],
        mask: NDArray[Any],
        complex_images: bool = False,
        sensitivity_map: NDArray[Any] | None = None,
        check: bool = True,
    ) -> NDArray[Any]:
        """Reconstruct slice by slice; images have the size of k-space.

        Parameters
        ----------
        kspace : complex array of shape (slices[, coils], height, width)
        mask : array of shape (width,), (height, width) or (slices, height, width)
            1 where k-space is sampled, 0 elsewhere.
        complex_images : bool
            Return complex images, if the model makes them, rather than magnitudes.
        sensitivity_map : complex array of the shape of `kspace`, optional
            Coil sensitivities, if `needs_sensitivity_map`.
        check : bool
            Compare k-space with the mask, with what the configuration expects and with the domain of the training.
            Types, shapes and values are checked in any case.

        Returns
        -------
        float32 or complex64 array of shape (slices, height, width)
            In the units of k-space under an orthonormal Fourier transform. Slices of zeros stay zero.

        Raises
        ------
        ValueError
            If k-space or mask are not as they should be, see
            :func:`direct_hifimamba.data.checks.check_acquisition`; if the model makes no complex images, or images
            that are not finite; or if sensitivities are missing or given without need.
        """
        kspace, mask = np.asarray(kspace), np.asarray(mask)
        sensitivity_map = None if sensitivity_map is None else np.asarray(sensitivity_map)
        sampled = self.check(summarise(kspace, kspace.shape), mask, kspace[len(kspace) // 2], check)
        masks = np.broadcast_to(sampled, (len(kspace), *kspace.shape[-2:]))
        for departure in self.find_departures(kspace, masks[len(kspace) // 2]) if check else ():
            warnings.warn(departure, OutsideDomainWarning, stacklevel=3)  # past torch.no_grad
        self.check_sensitivity_map(None if sensitivity_map is None else sensitivity_map.shape, kspace.shape)
        maps = [None] * len(kspace) if sensitivity_map is None else sensitivity_map
        slices = enumerate(zip(kspace, masks, maps, strict=True))
        return np.stack(
            [
                self.reconstruct_slice(kspace_slice, slice_mask, complex_images, slice_maps, index=index)
                for index, (kspace_slice, slice_mask, slice_maps) in slices
            ]
        )

    def check(
        self,
        summary: KSpaceSummary,
        mask: NDArray[Any],
        middle: NDArray[Any],
        compare: bool = True,
        is_calibrated: bool = False,
    ) -> NDArray[np.bool_]:
        """Make sure that k-space can be reconstructed.

        Parameters
        ----------
        summary : KSpaceSummary
            Of all slices.
        mask : array of shape (width,), (height, width) or (slices, height, width)
        middle : complex array of shape ([coils, ]height, width)
            The slice in the middle.
        compare : bool
            As `check` of :meth:`__call__`.
        is_calibrated : bool
            Whether calibration lines were measured apart from k-space.

        Returns
        -------
        bool array of shape (height, width) or (slices, height, width)
            The mask.

        Raises
        ------
        ValueError
            As :meth:`__call__`.
        """
        sampled = check_acquisition(summary, mask, compare)
        masks = np.broadcast_to(sampled, summary.acquired.shape)
        if compare:
            check_image_origin(middle[None], masks[len(masks) // 2], self.centered)
            self._check_completeness(summary.acquired, masks)
        if self._pad_coils and len(summary.shape) == 4 and summary.shape[1] > self._pad_coils:
            raise ValueError(f"k-space has {summary.shape[1]} coils; expected at most pad_coils: {self._pad_coils}.")
        if is_calibrated and self._compresses_coils:
            raise ValueError(
                "Calibration lines were measured apart from k-space, and the configuration compresses coils "
                "(compress_coils), which it would do in another way for them; expected one without."
            )
        for slice_mask in masks if sampled.ndim == 3 else [sampled]:
            if slice_mask.any():  # not in slices without signal
                self._center(slice_mask, is_calibrated)
        return sampled

    @torch.no_grad()
    def reconstruct_slice(
        self,
        kspace: NDArray[Any],
        sampled: NDArray[np.bool_],
        complex_images: bool = False,
        sensitivity_map: NDArray[Any] | None = None,
        image_size: tuple[int, int] | None = None,
        index: int = 0,
        calibration: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Reconstruct one slice of a volume that :meth:`check` has accepted.

        Parameters
        ----------
        kspace : complex array of shape ([coils, ]height, width)
        sampled : bool array of shape (height, width)
            What :meth:`check` has returned, for this slice.
        complex_images : bool
            As in :meth:`__call__`, and so is `sensitivity_map`, of this slice.
        sensitivity_map : complex array of the shape of `kspace`, optional
        image_size : tuple of ints, optional
            Height and width to which the image is cropped about the middle, where the configuration has
            `inference.crop: header`. Default: that of k-space.
        index : int
            Number of the slice, for messages.
        calibration : complex array of the shape of `kspace`, optional
            Calibration lines that were measured apart from k-space, zero elsewhere. Sensitivities are estimated from
            them.

        Returns
        -------
        float32 or complex64 array of shape (height, width)

        Raises
        ------
        ValueError
            As :meth:`__call__`.
        """
        if not (kspace[..., sampled] != 0).any():  # DIRECT cannot scale a slice without signal
            image: NDArray[Any] = np.zeros(sampled.shape, np.complex64 if complex_images else np.float32)
        else:
            batch = self._transform_slice(kspace, sampled, sensitivity_map, index, calibration)
            image = combine_members([output.image for output in self._run_members(batch, complex_images)])
            image = image * batch["scaling_factor"].cpu().numpy()[0]
        _check_finite(image, index)
        return self._crop_images(image, image_size)

    @torch.no_grad()
    def analyse_slice(
        self,
        kspace: NDArray[Any],
        sampled: NDArray[np.bool_],
        sensitivity_map: NDArray[Any] | None = None,
        image_size: tuple[int, int] | None = None,
        index: int = 0,
        calibration: NDArray[Any] | None = None,
    ) -> SliceAnalysis:
        """Reconstruct one slice with each member of the ensemble, and compare their mean with the samples.

        Parameters are those of :meth:`reconstruct_slice`.

        Raises
        ------
        ValueError
            As :meth:`__call__`; or if the networks make no complex images, or the configuration compresses coils.
        """
        acquired = sampled & (kspace != 0).any(axis=0)
        if not acquired.any():
            images = np.zeros((self.members, *sampled.shape), np.complex64)
            return SliceAnalysis(self._crop_images(images, image_size), np.zeros_like(kspace))
        batch = self._transform_slice(kspace, sampled, sensitivity_map, index, calibration)
        measured = torch.view_as_complex(batch["masked_kspace"].contiguous())[0].numpy()
        if len(measured) < len(kspace):
            raise ValueError(
                "The configuration has compress_coils, which mixes the noise of coils: no residual is known."
            )
        members, predicted = [], np.zeros_like(measured)
        for output in self._run_members(batch, complex_images=True, kspace=True):
            members.append(output.image)
            predicted += cast(NDArray[np.complex64], output.kspace) / np.float32(self.members)
        scale = batch["scaling_factor"].cpu().numpy()[0]
        images = np.stack(members) * scale
        _check_finite(images, index)
        residual = ((measured - predicted) * acquired * scale)[: len(kspace)]
        return SliceAnalysis(self._crop_images(images, image_size), residual)

    def _crop_images(self, images: NDArray[Any], size: tuple[int, int] | None) -> NDArray[Any]:
        return images if self._crop is None or size is None else center_crop(torch.from_numpy(images), size).numpy()

    def _transform_slice(
        self,
        kspace: NDArray[Any],
        sampled: NDArray[np.bool_],
        sensitivity_map: NDArray[Any] | None,
        index: int,
        calibration: NDArray[Any] | None,
    ) -> dict[str, Any]:
        """Return the batch of one slice for an engine."""
        sample = _make_sample(kspace, sampled, self._center(sampled, calibration is not None), index)
        if sensitivity_map is not None:
            if not np.iscomplexobj(sensitivity_map):
                raise ValueError(
                    f"The coil sensitivities have values of type {sensitivity_map.dtype}; expected complex numbers."
                )
            if not np.isfinite(sensitivity_map).all():
                raise ValueError("The coil sensitivities have values that are NaN or infinite; expected finite ones.")
            sample["sensitivity_map"] = np.array(sensitivity_map, np.complex64)
        estimated = None if calibration is None else self._estimate_sensitivity_map(calibration, index)
        transform = self._transform
        if estimated is not None and isinstance(transform, EstimatedMapsTransform):
            transform = transform.transform
        transformed = transform(sample)
        if not (transformed["scaling_factor"] > 0).all():
            measured = ((kspace != 0).any(axis=0) & sampled).mean()
            raise ValueError(
                f"Only {measured:.2%} of slice {index} is sampled and not 0, so that the percentile of k-space by "
                "which DIRECT divides it (normalization.scale_percentile) is 0; expected more samples. If k-space is "
                "padded with zeros, crop it."
            )
        if estimated is not None:
            transformed["sensitivity_map"] = estimated
        return default_collate([transformed])

    def find_departures(self, kspace: NDArray[Any], sampled: NDArray[np.bool_]) -> list[str]:
        """Say in what k-space differs from that of the training, if it is known: see :meth:`Domain.find_departures`."""
        return [] if self.domain is None else self.domain.find_departures(kspace, sampled)

    def _center(self, sampled: NDArray[np.bool_], is_calibrated: bool = False) -> NDArray[np.bool_]:
        """Return the samples for autocalibration that the configuration's data set takes."""
        if self._center_columns is None:
            needs_center = self._needs_other_center or (self._estimates and not is_calibrated)
            return center_block(sampled) if needs_center else sampled
        middle, half = sampled.shape[1] // 2, self._center_columns // 2
        center = np.zeros_like(sampled)
        center[:, middle - half : middle + half] = True
        return center

    def _estimate_sensitivity_map(self, calibration: NDArray[Any], index: int) -> torch.Tensor | None:
        """Return the sensitivities that the configuration estimates, from calibration lines; None if it does not."""
        if self.needs_sensitivity_map:
            return None
        sampled = (calibration != 0).reshape(-1, *calibration.shape[-2:]).any(axis=0)
        return self._transform(_make_sample(calibration, sampled, self._center(sampled), index))["sensitivity_map"]

    def _check_completeness(self, acquired: NDArray[np.bool_], masks: NDArray[np.bool_]) -> None:
        if self._needs_all_kspace and not (acquired & ~masks).any():
            raise ValueError(
                f"The configuration has {' and '.join(self._needs_all_kspace)}, which DIRECT applies to k-space before "
                "masking, and there is nothing but the samples of the mask. The model was trained on something else; "
                "train without, or leave out this check (--no-check, check=False)."
            )

    def check_sensitivity_map(self, shape: tuple[int, ...] | None, kspace_shape: tuple[int, ...]) -> None:
        """Make sure that coil sensitivities are given if they are needed, in the shape of k-space.

        Raises
        ------
        ValueError
            If sensitivities are missing, given without need, or of another shape. `shape` is None without any.
        """
        if (shape is not None) != self.needs_sensitivity_map:
            raise ValueError(
                "The configuration takes coil sensitivities as given (sensitivity_maps: stored), and there are none."
                if self.needs_sensitivity_map
                else "Coil sensitivities are given, and the configuration estimates its own; expected "
                "sensitivity_maps: stored in inference.dataset."
            )
        if shape is not None and shape != kspace_shape:
            raise ValueError(
                f"The coil sensitivities have the shape {shape}; expected that of k-space, {kspace_shape}."
            )

    def _run_members(self, batch: dict[str, Any], complex_images: bool, kspace: bool = False) -> Iterator[_Output]:
        """Yield the output of each network for each reflection; `kspace` needs complex images."""
        for engine in self._engines:
            for axes in self._flips:
                yield _run_engine(engine, batch, complex_images, kspace, axes, self.centered)


def _flip(tensor: torch.Tensor, axes: tuple[int, ...], centered: bool) -> torch.Tensor:
    """Flip an image, or its k-space, about the origin, which an even number of pixels does not have in the middle."""
    shifts = [0 if centered and tensor.shape[axis] % 2 else 1 for axis in axes]
    return tensor.flip(axes).roll(shifts, axes) if axes else tensor


def _run_engine(
    engine: Engine,
    batch: dict[str, Any],
    complex_images: bool,
    kspace: bool,
    axes: tuple[int, ...],
    centered: bool,
) -> _Output:
    """Reconstruct one slice, flipped along some axes of the image, and flip the result back."""
    data_axes = tuple(axis - 1 for axis in axes)  # k-space, maps and masks have another axis at the end
    batch = {
        name: _flip(value, data_axes, centered) if isinstance(value, torch.Tensor) and value.ndim == 5 else value
        for name, value in batch.items()
    }
    outputs: list[Any] = []
    result = _observe(engine, outputs.append)._do_iteration(batch)
    image = result.output_image
    magnitude = modulus(image) if image.ndim == 4 else image
    if not complex_images:
        return _Output(_flip(magnitude, axes, centered)[0].cpu().numpy())
    # Most engines take the magnitude of what `forward_function` gives; of several images the last counts.
    candidates = [image, *(output[0][-1] if isinstance(output[0], list) else output[0] for output in outputs)]
    image = next((candidate for candidate in candidates if _has_magnitude(candidate, magnitude)), None)
    if image is None:
        raise ValueError(
            f"{type(engine).__name__} gives no complex images; ask for magnitudes alone (without --complex, --phase "
            "and --uncertainty)."
        )
    results = [image]
    if kspace:
        results.append(engine.forward_operator(expand_operator(image, result.sensitivity_map, 1), dim=(2, 3)))
    flipped = (_flip(torch.view_as_complex(values.contiguous()), axes, centered) for values in results)
    return _Output(*(values[0].cpu().numpy() for values in flipped))


def _check_finite(images: NDArray[Any], index: int) -> None:
    if not np.isfinite(images).all():
        raise ValueError(
            f"The model's image of slice {index} has values that are NaN or infinite; expected finite ones. Is the "
            "checkpoint one of a training that diverged?"
        )


def _has_magnitude(image: Any, magnitude: torch.Tensor) -> bool:
    """Return whether an object is a complex image with the given magnitude."""
    return (
        isinstance(image, torch.Tensor)
        and image.shape == (*magnitude.shape, 2)
        and torch.allclose(modulus(image), magnitude)
    )


def _observe(engine: Engine, see: Callable[[Any], None]) -> Engine:
    """Return a shallow copy of the engine whose `forward_function` shows what it returns to `see`.

    The engine itself stays as it is: other threads use it.
    """
    engine = copy(engine)
    forward_function = engine.forward_function

    def show(data: dict[str, Any]) -> Any:
        output = forward_function(data)
        see(output)
        return output

    engine.forward_function = show
    return engine


def _make_sample(
    kspace: NDArray[Any], sampled: NDArray[np.bool_], center: NDArray[np.bool_], index: int
) -> dict[str, Any]:
    """Return a slice as DIRECT's `FastMRI` data set passes it to the transforms."""
    return {
        "kspace": np.array(kspace.reshape(-1, *sampled.shape), np.complex64),
        "sampling_mask": sampled[None, ..., None].copy(),
        "acs_mask": center[None, ..., None].copy(),
        "reconstruction_size": (*sampled.shape, 1),
        "filename": "",
        "slice_no": index,
    }
