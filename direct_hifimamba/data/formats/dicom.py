"""DICOM images without any identity, one file for each slice [1]_.

References
----------
.. [1] DICOM PS3.3, Information Object Definitions: A.4 MR Image IOD.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.images import Volume
from direct_hifimamba.data.formats.optional import optional_package
from direct_hifimamba.files import fill_folder

with optional_package("pydicom", "DICOM images", extra="formats"):
    from pydicom import FileDataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
    from pydicom.valuerep import DSfloat

_SPOOL = "slices"
_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientPosition"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("SliceThickness", "ScanOptions", "EchoTime", "EchoTrainLength", "RepetitionTime"),
    *("PositionReferenceIndicator", "Laterality"),
)
"""Attributes that images have to have, and that are unknown or left out on purpose."""


def write_images(path: Path, images: Iterable[NDArray[Any]], volume: Volume) -> None:
    """Write a folder of files as `images.write_images` does.

    Magnitudes are stored as integers of 16 bits with one slope for all slices, which rounds them to within 1/131070 of
    the maximum. MR images of DICOM have no more bits, and viewers seldom read its parametric maps of floats.
    """
    with fill_folder(path) as folder:
        spool = folder / _SPOOL
        with spool.open("wb") as file:
            for image in images:
                file.write(np.abs(image).astype(np.float32).tobytes())
        magnitudes: NDArray[np.float32] = np.memmap(spool, np.float32, "r", shape=(volume.num_slices, *image.shape))
        slope = max(float(magnitudes.max()), float(np.finfo(np.float32).tiny)) / 65535
        affine = volume.affine_of(image.shape)
        series = {name: generate_uid(prefix=None) for name in ("Study", "Series", "FrameOfReference")}
        for index, magnitude in enumerate(magnitudes):
            number, position = divmod(index, len(magnitudes) // volume.volumes)
            data = _dataset(magnitude, position, slope, affine, series)
            data.InstanceNumber, data.AcquisitionNumber = index + 1, number + 1
            if volume.volumes > 1:
                data.TemporalPositionIdentifier, data.NumberOfTemporalPositions = number + 1, volume.volumes
            data.save_as(folder / f"{index + 1:04d}.dcm", enforce_file_format=True)
        del magnitudes, magnitude
        spool.unlink()


def _dataset(
    image: NDArray[np.float32], position: int, slope: float, affine: NDArray[np.float64], series: Mapping[str, str]
) -> FileDataset:
    """Return the file of a slice; `position` is its number in its volume."""
    affine = np.diag([-1, -1, 1, 1]) @ affine  # from RAS+ to DICOM's LPS
    distances = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / distances
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    for name in _EMPTY:
        setattr(data, name, None)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = series["Study"], series["Series"]
    data.FrameOfReferenceUID = series["FrameOfReference"]
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "No identity is read from raw data"
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "MR", "direct-hifimamba", "direct-hifimamba"
    data.SeriesNumber = 1
    data.SeriesDescription = "Reconstruction by a neural network"
    data.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    data.DerivationDescription = "Reconstructed from k-space by a neural network; not for diagnosis"
    data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = "RM", "NONE", "2D"
    data.PixelSpacing = _decimals(distances[1:])
    data.SpacingBetweenSlices = _decimals(distances[:1])
    data.ImageOrientationPatient = _decimals([*directions[:, 2], *directions[:, 1]])
    data.ImagePositionPatient = _decimals((affine @ [position, 0, 0, 1])[:3])
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, _decimals([slope])[0], "US"
    pixels = np.round(image.astype(np.float64) / float(data.RescaleSlope)).clip(0, 65535).astype("<u2")
    data.set_pixel_data(pixels, "MONOCHROME2", bits_stored=16, generate_instance_uid=False)
    return data


def _decimals(values: Any) -> list[DSfloat]:
    """Return numbers as decimal strings of DICOM, which have at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]
