"""Tests of direct_hifimamba.data.formats.images and of the writers of all formats."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from direct_hifimamba.data.formats.bart import read_cfl, to_slices
from direct_hifimamba.data.formats.images import SUFFIXES, Volume, find_format, upright_affine, write_images
from direct_hifimamba.data.formats.nifti import load_magnitude
from direct_hifimamba.data.formats.registry import read
from tests.data.formats.scans import KSPACE, TWIX_HEADER, complex_noise, lines_of, write_ismrmrd, write_twix

pydicom = pytest.importorskip("pydicom")

IMAGES = 300 * complex_noise(3, 6, 5)
AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("xyz", [0.3, -0.5, 1.2]).as_matrix() * [4.0, 1.5, 2.0]
AFFINE[:3, 3] = [-20, 30, 7.5]
KNOWN = Volume(3, AFFINE, (6, 5), {"version": "1"})


def read_hdf5(path: Path) -> NDArray[Any]:
    with h5py.File(path) as file:
        return file["reconstruction"][()]


def read_dicom_itk(path: Path) -> NDArray[Any]:
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK, by which viewers read DICOM, is not installed")
    return itk.GetArrayFromImage(itk.ReadImage(sorted(map(str, path.iterdir()))))


def read_dicom(path: Path) -> NDArray[Any]:
    files = [pydicom.dcmread(each) for each in sorted(path.iterdir())]
    return np.stack([file.pixel_array * float(file.RescaleSlope) for file in files])


#: For each format how it is read, whether values are complex, and the largest error relative to the maximum.
READERS: dict[str, tuple[Callable[[Path], NDArray[Any]], bool, float]] = {
    "hdf5": (read_hdf5, True, 0),
    "nifti": (lambda path: nibabel.load(path).get_fdata().T, False, 1e-7),
    "cfl": (lambda path: to_slices(read_cfl(path))[:, 0], True, 0),
    "dicom": (read_dicom, False, 0.50001 / 65535),
}
ITK = {"dicom, SimpleITK": (read_dicom_itk, False, 0.50001 / 65535)}


@pytest.mark.parametrize("images", [IMAGES, abs(IMAGES)], ids=["complex", "real"])
@pytest.mark.parametrize("name", READERS | ITK)
def test_images_come_back(tmp_path: Path, name: str, images: NDArray[Any]) -> None:
    read, is_complex, tolerance = (READERS | ITK)[name]
    path = tmp_path / f"scan{SUFFIXES[name.partition(',')[0]]}"
    write_images(path, images, KNOWN)
    expected = images if is_complex else abs(images)
    np.testing.assert_allclose(read(path), expected, rtol=0, atol=tolerance * abs(images).max())
    assert {each.name for each in tmp_path.iterdir()} == {path.name} | ({"scan.hdr"} if name == "cfl" else set())


def test_contact_sheets_show_slices_of_the_whole_volume(tmp_path: Path) -> None:
    images = np.tile(np.arange(40)[:, None, None], (1, 8, 8)) / np.float32(39)
    write_images(tmp_path / "scan.png", images, Volume(40))
    with Image.open(tmp_path / "scan.png") as sheet:
        pixels = np.asarray(sheet)[..., 0]
    tiles = pixels[6::10, 6::10]  # of 8 pixels, with a margin of 2
    assert tiles.shape == (5, 5)
    np.testing.assert_allclose(tiles.ravel(), np.linspace(0, 39, 25).round() / 39 * 255, atol=1)


def nifti_affine(path: Path) -> NDArray[np.float64]:
    return nibabel.load(path).affine[:, [2, 1, 0, 3]]


def dicom_affine(path: Path) -> NDArray[np.float64]:
    """The affine of DICOM PS3.3, C.7.6.2.1.1, in RAS+, and the distance of the slices' positions."""
    first, second = (pydicom.dcmread(each) for each in sorted(path.iterdir())[:2])
    affine = np.eye(4)
    along_row, along_column = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    affine[:3, 1], affine[:3, 2] = along_column * first.PixelSpacing[0], along_row * first.PixelSpacing[1]
    affine[:3, 3] = first.ImagePositionPatient
    affine[:3, 0] = np.subtract(second.ImagePositionPatient, first.ImagePositionPatient).astype(float)
    assert np.linalg.norm(affine[:3, 0]) == pytest.approx(float(first.SpacingBetweenSlices))
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize(("name", "read"), [("nifti", nifti_affine), ("dicom", dicom_affine)])
def test_voxels_are_where_they_are_in_the_patient(tmp_path: Path, name: str, read: Callable[..., Any]) -> None:
    path = tmp_path / f"scan{SUFFIXES[name]}"
    write_images(path, IMAGES, Volume(3, AFFINE, (11, 8)))
    cropped = read(path)  # by 2 rows and 1 column before the first ones
    np.testing.assert_allclose(cropped @ [2, 1, 3, 1], AFFINE @ [2, 3, 4, 1], atol=1e-4)


def test_volumes_are_the_fourth_axis_of_nifti_and_times_of_dicom(tmp_path: Path) -> None:
    images = np.concatenate([abs(IMAGES), 2 * abs(IMAGES)])
    for name in ("nifti", "dicom", "hdf5"):
        write_images(tmp_path / f"one{SUFFIXES[name]}", abs(IMAGES), KNOWN)
        write_images(tmp_path / f"scan{SUFFIXES[name]}", images, replace(KNOWN, num_slices=6, volumes=2))
    nifti = nibabel.load(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(nifti.get_fdata().T.reshape(images.shape), images, rtol=1e-6)
    assert nifti.shape == (5, 6, 3, 2)
    np.testing.assert_array_equal(nifti.affine, nibabel.load(tmp_path / "one.nii.gz").affine)
    files = [pydicom.dcmread(each) for each in sorted((tmp_path / "scan_dicom").iterdir())]
    assert [file.TemporalPositionIdentifier for file in files] == [1, 1, 1, 2, 2, 2]
    assert [file.ImagePositionPatient for file in files[:3]] == [file.ImagePositionPatient for file in files[3:]]
    np.testing.assert_allclose(dicom_affine(tmp_path / "scan_dicom"), dicom_affine(tmp_path / "one_dicom"), atol=1e-6)
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file.attrs["volumes"] == 2
        np.testing.assert_array_equal(file.attrs["affine"], AFFINE)


def test_images_without_a_position_are_upright(tmp_path: Path) -> None:
    write_images(tmp_path / "scan.nii.gz", IMAGES, Volume(3, upright_affine((5, 1.5, 2))))
    volume, zooms = load_magnitude(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(volume, abs(IMAGES), rtol=1e-6)
    assert zooms == (1.5, 2)
    assert nibabel.aff2axcodes(nibabel.load(tmp_path / "scan.nii.gz").affine) == ("R", "P", "S")
    with pytest.raises(ValueError, match="--voxel-size"):
        write_images(tmp_path / "scan_dicom", IMAGES, Volume(3))


def test_files_say_where_images_come_from(tmp_path: Path) -> None:
    write_images(tmp_path / "scan.h5", IMAGES, KNOWN)
    with h5py.File(tmp_path / "scan.h5") as file:
        assert json.loads(file.attrs["provenance"]) == {"version": "1"}
        np.testing.assert_array_equal(file.attrs["affine"], AFFINE)


def test_dicom_files_are_anonymous_and_of_one_series(tmp_path: Path) -> None:
    write_images(tmp_path / "scan_dicom", IMAGES, KNOWN)
    files = [pydicom.dcmread(each) for each in sorted((tmp_path / "scan_dicom").iterdir())]
    for data in files:
        assert data.PatientIdentityRemoved == "YES" and data.ImageType[0] == "DERIVED"
        assert not data.PatientName and not data.PatientID and not data.PatientBirthDate and not data.StudyDate
    assert len({data.SeriesInstanceUID for data in files}) == 1
    assert len({data.SOPInstanceUID for data in files}) == len(files)


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("problem", ["interrupted", "too few", "too many", "another shape"])
def test_what_is_not_complete_leaves_nothing(tmp_path: Path, name: str, problem: str) -> None:
    def images() -> Iterator[NDArray[Any]]:
        yield IMAGES[0]
        if problem == "interrupted":
            raise KeyboardInterrupt
        if problem == "another shape":
            yield IMAGES[0].T
        yield from IMAGES if problem == "too many" else IMAGES[:1]

    with pytest.raises(KeyboardInterrupt if problem == "interrupted" else ValueError):
        write_images(tmp_path / f"scan{SUFFIXES[name]}", images(), KNOWN)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file sizes")
@pytest.mark.parametrize("name", SUFFIXES)
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str) -> None:
    import resource

    path = tmp_path / f"scan{SUFFIXES[name]}"
    write_images(path, IMAGES, KNOWN)
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    largest = max(each.stat().st_size for each in files)
    for each in files:
        each.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Not one byte less, since identifiers in DICOM files differ in length from file to file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"(?i)large|writ"):
            write_images(path, IMAGES, KNOWN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    for name in ("scan.jpg", "scan.nii", "scan.H5", "scan"):
        with pytest.raises(ValueError, match=r"ends in \.h5, \.nii\.gz, \.png, \.cfl, _dicom"):
            write_images(tmp_path / name, IMAGES, KNOWN)
        if name != "scan":
            with pytest.raises(ValueError, match="has the suffix of another format"):
                find_format(tmp_path / name)
    assert find_format(tmp_path / "scan.2") is None  # a dot in a name


PERSONAL = {"name": "Doe^Jane", "id": "AB-4711", "born": "1970-01-31", "day": "2024-02-29", "clinic": "St. Elsewhere"}


def personal_ismrmrd(path: Path) -> None:
    pytest.importorskip("ismrmrd")
    from ismrmrd import xsd

    def change(header: Any) -> None:
        header.subjectInformation = xsd.subjectInformationType(
            patientName=PERSONAL["name"], patientID=PERSONAL["id"], patientBirthdate=PERSONAL["born"]
        )
        header.studyInformation = xsd.studyInformationType(studyDate=PERSONAL["day"], studyID=PERSONAL["id"])
        header.measurementInformation = xsd.measurementInformationType(
            measurementID=PERSONAL["id"], patientPosition=xsd.patientPositionType.HFS, seriesDate=PERSONAL["day"]
        )
        header.acquisitionSystemInformation.institutionName = PERSONAL["clinic"]

    write_ismrmrd(path, list(lines_of(KSPACE)), change)


def personal_twix(path: Path) -> None:
    pytest.importorskip("twixtools")
    texts = "".join(f' <ParamString."t{name}"> {{ "{value}" }}' for name, value in PERSONAL.items())
    write_twix(path, list(lines_of(KSPACE)), lambda text: text + texts if text == TWIX_HEADER["Meas"] else text)


def personal_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kspace"] = complex_noise(3, 2, 6, 5)
        file.attrs.update(PERSONAL)
        file["ismrmrd_header"] = "".join(f"<{name}>{value}</{name}>" for name, value in PERSONAL.items())


@pytest.mark.parametrize("write", [personal_ismrmrd, personal_twix, personal_hdf5])
def test_nothing_personal_reaches_an_output(tmp_path: Path, write: Callable[[Path], None]) -> None:
    source = tmp_path / "scan.dat"
    write(source)
    assert all(value.encode() in source.read_bytes() for value in PERSONAL.values())
    raw = read(source)
    volume = Volume.of(raw, upright_affine((1, 1, 1)), version="1")
    for name, suffix in SUFFIXES.items():
        write_images(tmp_path / f"{name}{suffix}", (abs(each[0]) for each in raw.slices()), volume)
    outputs = [path for path in tmp_path.rglob("*") if path.is_file() and path != source]
    assert len(outputs) == len(SUFFIXES) + 3
    forms = [form for value in PERSONAL.values() for form in (value, value.replace("-", ""), value.split("^")[0])]
    for path in outputs:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert not [form for form in forms if form.encode() in content], path
