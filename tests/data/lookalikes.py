"""Small look-alikes of the public data sets as they lie on disk after unpacking: names, keys, types, axes, attributes.

Each function writes a download below a folder and returns the content: magnitude images of shape (slices, height,
width), upright, by the name of the prepared file. What the real archives hold besides is there, too: the files that
must be skipped.
"""

import gzip
import re
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from direct.common.subsample import CalgaryCampinasMaskFunc
from direct.utils.io import calculate_md5

HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"\
 xsi:schemaLocation="http://www.ismrm.org/ISMRMRD ismrmrd.xsd">
  <studyInformation><studyTime>00:00:00</studyTime></studyInformation>
  <measurementInformation><measurementID>0</measurementID><patientPosition>FFS</patientPosition></measurementInformation>
  <acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor></acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>63680000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace>
      <matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>280</x><y>161</y><z>4.5</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>{size}</x><y>{size}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>140</x><y>140</y><z>3</z></fieldOfView_mm>
    </reconSpace>
    <trajectory>cartesian</trajectory>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{center}</center></kspace_encoding_step_1>
      <kspace_encoding_step_2><minimum>0</minimum><maximum>0</maximum><center>0</center></kspace_encoding_step_2>
    </encodingLimits>
  </encoding>
</ismrmrdHeader>
"""
NUM_PADDED = 3
"""Columns on the left and on the right that a look-alike of fastMRI did not acquire."""


def magnitude(seed: int, *shape: int) -> np.ndarray:
    """Positive noise on an ellipse that is not in the middle, zero outside; no symmetry could hide a flip."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape[-2:]), indexing="ij")
    inside = np.square(y / 0.8 + 0.1) + np.square(x / 0.7 - 0.15) < 0.9
    return np.where(inside, rng.uniform(50, 100, shape), 0).astype(np.float32)


def centred_fft(image: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Centred, orthonormal Fourier transform of the last two axes, by numpy."""
    transform = np.fft.ifft2 if inverse else np.fft.fft2
    shifted = np.fft.ifftshift(image, axes=(-2, -1))
    return np.fft.fftshift(transform(shifted, norm="ortho"), axes=(-2, -1)).astype(np.complex64)


def measure(image: np.ndarray, coils: int, seed: int) -> np.ndarray:
    """Coil images of shape (slices, coil, height, width) whose root sum of squares is `image`."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[-2:]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    slopes = rng.uniform(-1, 1, (2, 2, coils, 1, 1))
    maps = (1.5 + slopes[0, 0] * y / 2 + slopes[0, 1] * x / 2) * np.exp(1j * (slopes[1, 0] * y + slopes[1, 1] * x))
    return (image[:, None] * maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)


def fastmri(root: Path, coils: str = "single", num_slices: int = 8, size: int = 24) -> dict[str, np.ndarray]:
    """Knees of fastMRI: measured k-space twice as high as the image, of zero-padded width; two acquisitions."""
    shape = (2 * size, size + 10)
    content = {}
    for split, number, acquisition in (
        ("train", 1000001, "CORPDFS_FBK"),
        ("train", 1000002, "CORPD_FBK"),
        ("val", 1000000, "CORPDFS_FBK"),
        ("val", 1000007, "CORPD_FBK"),
        ("val", 1000017, "CORPDFS_FBK"),
        ("test", 1000022, "CORPDFS_FBK"),
    ):
        path = root / f"{coils}coil_{split}" / f"file{number}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = measure(magnitude(number, num_slices, *shape), 3, number)
        if coils == "single":
            image = image[:, 0]
        kspace = centred_fft(image)
        kspace[..., :NUM_PADDED] = kspace[..., -NUM_PADDED:] = 0
        image = np.abs(centred_fft(kspace, inverse=True))
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        cut = image[..., top : top + size, left : left + size]
        rss = cut if coils == "single" else np.linalg.norm(cut, axis=1)
        with h5py.File(path, "w") as file:
            last = shape[1] - 2 * NUM_PADDED - 1
            file["ismrmrd_header"] = HEADER.format(
                height=shape[0], width=shape[1], size=size, last=last, center=shape[1] // 2 - NUM_PADDED
            )
            file["kspace"] = kspace
            if split == "test":
                file["mask"] = np.ones(shape[1], np.float32)
            else:
                file["reconstruction_rss"] = 1.5 * rss if coils == "single" else rss
                if coils == "single":
                    file["reconstruction_esc"] = rss
            file.attrs.update(
                {
                    "acquisition": acquisition,
                    "max": float(rss.max()),
                    "norm": float(np.linalg.norm(rss)),
                    "patient_id": f"{number:064x}",
                }
            )
        content[path.name] = rss
    return content


def calgary_campinas(
    root: Path, coils: int = 3, num_slices: int = 66, size: tuple[int, int] = (22, 20), num_empty: int = 0
) -> dict[str, np.ndarray]:
    """Calgary-Campinas: real and imaginary parts in turn, uncentred transform, columns left out, two widths.

    On either side there are `num_empty` more slices of zeros, which the content that is returned does not have.
    """
    content = {}
    for split, name, width in (
        ("Train", "e14089s3_P53248.7.h5", size[1]),
        ("Train", "e14134s3_P06656.7.h5", size[1] + 4),
        ("Val", "e13992s3_P09216.7.h5", size[1]),
    ):
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = measure(magnitude(len(content), num_slices, size[0], width), coils, 1)
        kspace = np.fft.fftshift(np.fft.fft2(image), axes=(-2, -1)).astype(np.complex64)
        sampled = int(np.ceil(0.85 * width))
        kspace[..., sampled:] = 1  # the reader of DIRECT does not rely on zeros
        interleaved = np.ascontiguousarray(np.moveaxis(kspace, 1, -1)).view(np.float32)
        with h5py.File(path, "w") as file:
            shape = interleaved.shape[1:]
            stored = file.create_dataset("kspace", (num_slices + 2 * num_empty, *shape), np.float32, chunks=(1, *shape))
            stored[num_empty : num_empty + num_slices] = interleaved
        kspace[..., sampled:] = 0
        content[path.name] = np.linalg.norm(np.fft.ifft2(kspace, norm="ortho"), axis=1)
    (root / "Test-R=5").mkdir()
    return content


def calgary_campinas_masks(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Masks as the challenge has them, in DIRECT's cache folder, with checksums of their own; returns their folder."""
    folder = root / "calgary_campinas_masks"
    folder.mkdir(parents=True)
    checksums = {}
    for name in CalgaryCampinasMaskFunc.MASK_MD5S:
        acceleration, height, width = map(int, re.findall(r"\d+", name))
        masks = np.random.default_rng(acceleration).random((3, height, width)) < 1 / acceleration
        masks[:, CalgaryCampinasMaskFunc.circular_centered_mask((height, width), 18)[0, ..., 0]] = True
        np.save(folder / name, masks.astype(float))
        checksums[name] = calculate_md5(str(folder / name))
    monkeypatch.setattr("direct.common.subsample.DIRECT_CACHE_DIR", root)
    monkeypatch.setattr(CalgaryCampinasMaskFunc, "MASK_MD5S", checksums)
    return folder


def save_nifti(
    path: Path, images: np.ndarray, affine: np.ndarray, dtype: type = np.int16, slope: float | None = None
) -> None:
    """Save upright slices as DICOM converters do: columns from the left, rows from the bottom, then slices.

    With a slope, what is stored has to be multiplied by it.
    """
    stored = (images if slope is None else images / slope)[:, ::-1].transpose(2, 1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored.astype(dtype), affine), path)
    if slope is not None:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[112:116] = np.float32(slope).tobytes()  # scl_slope in the header of NIfTI-1
        path.write_bytes(gzip.compress(bytes(raw), mtime=0))


def _oblique(spacing: tuple[float, float, float]) -> np.ndarray:
    """Affine of an axial volume that is tilted about two axes."""
    a, b = 0.5, 0.3
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ turn @ np.diag(spacing)
    affine[:3, 3] = (-80, -60, 20)
    return affine


def acdc(root: Path, size: tuple[int, int] = (30, 20), num_slices: int = 3) -> dict[str, np.ndarray]:
    """ACDC: frames of short-axis cine, 16-bit integers, beside the whole cine and the segmentations."""
    content = {}
    for split, patient, frames in (("training", 1, (1, 12)), ("training", 2, (1, 10)), ("testing", 101, (1, 14))):
        folder = root / "database" / split / f"patient{patient:03d}"
        affine = _oblique((1.5625, 1.5625, 10.0))
        for frame in frames:
            name = f"patient{patient:03d}_frame{frame:02d}"
            images = np.rint(magnitude(100 * patient + frame, num_slices, *size))
            save_nifti(folder / f"{name}.nii.gz", images, affine)
            save_nifti(folder / f"{name}_gt.nii.gz", images > 60, affine, np.uint8)
            content[f"{name}.h5"] = images
        cine = np.ones((*size[::-1], num_slices, 4), np.int16)
        nibabel.save(nibabel.Nifti1Image(cine, affine), folder / f"patient{patient:03d}_4d.nii.gz")
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
        (folder / "._patient_frame01.nii.gz").write_text("left by an archiver")
    (root / "database" / "MANDATORY_CITATION.md").write_text("Cite the paper.\n")
    return content


def prostate158(root: Path, size: tuple[int, int] = (27, 27), num_slices: int = 4) -> dict[str, np.ndarray]:
    """Prostate158: axial T2, here as integers with a slope, beside diffusion on the same grid and segmentations."""
    content = {}
    for split, patient in (("train", "020"), ("train", "021"), ("test", "001")):
        folder = root / f"prostate158_{split}" / split / patient
        affine = _oblique((0.4, 0.4, 3.0))
        images = 0.25 * np.rint(magnitude(int(patient), num_slices, *size) / 0.25)
        images[0] = 0
        save_nifti(folder / "t2.nii.gz", images, affine, slope=0.25)
        for name in ("adc", "dwi"):
            save_nifti(folder / f"{name}.nii.gz", 2 * images, affine, np.float32)
        for name in ("t2_anatomy_reader1", "t2_tumor_reader1", "adc_tumor_reader1", "empty"):
            save_nifti(folder / f"{name}.nii.gz", images > 60, affine, np.uint8)
        content[f"{patient}_t2.h5"] = images
    for table, patient in (("train", "020"), ("valid", "021")):
        row = f"{int(patient)},train/{patient}/t2.nii.gz,train/{patient}/adc.nii.gz\n"
        (root / "prostate158_train" / f"{table}.csv").write_text(f"ID,t2,adc\n{row}")
    return content


def m4raw(root: Path, size: int = 32, num_slices: int = 18) -> dict[str, np.ndarray]:
    """M4Raw: 4 coils, several repetitions of three contrasts, and a header that is no ISMRMRD document."""
    content = {}
    for split, subject in (("train", 2022061003), ("val", 2022061401), ("test", 2022101401)):
        for contrast, repetitions in (("T1", 2), ("T2", 1), ("FLAIR", 1)):
            for repetition in range(1, repetitions + 1):
                path = root / f"multicoil_{split}" / f"{subject}_{contrast}{repetition:02d}.h5"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = magnitude(subject + repetition, num_slices, size, size)
                with h5py.File(path, "w") as file:
                    file["ismrmrd_header"] = "<header><sequence>SE</sequence></header>"
                    file["kspace"] = centred_fft(measure(image, 4, repetition))
                    file["reconstruction_rss"] = image
                    file.attrs.update(
                        {"acquisition": f"AX{contrast}", "max": float(image.max()), "patient_id": f"{subject:032x}"}
                    )
                content[path.name] = image
    return content


def raw(root: Path, size: int = 32, num_slices: int = 3) -> dict[str, np.ndarray]:
    """K-space in three formats, one of which is recognised in spite of its name."""
    content = {}
    for seed, name in enumerate(("train/brain.npy", "val/brain.npz", "test/brain.raw")):
        image = magnitude(seed, num_slices, size, size)
        kspace = centred_fft(measure(image, 4, seed))
        path = root / name
        path.parent.mkdir(parents=True)
        if path.suffix == ".npy":
            np.save(path, kspace)
        elif path.suffix == ".npz":
            np.savez(path, kspace=kspace)
        else:
            with h5py.File(path, "w") as file:
                file["kspace"] = kspace.view(np.float32).reshape(*kspace.shape, 2)
        content[f"{path.name}.h5"] = image
    return content
