"""Tests of direct_hifimamba.data.formats.registry and of the formats that hold arrays."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from direct_hifimamba.data.acquisition import find_mask
from direct_hifimamba.data.formats.bart import from_slices, write_cfl
from direct_hifimamba.data.formats.registry import find_format, read, read_array
from tests.data.formats.scans import complex_noise

KSPACE = complex_noise(3, 4, 12, 16)
FIELDS = np.dtype([("real", np.float32), ("imag", np.float32)])


def write_hdf5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def write_npy(path: Path, array: NDArray[Any]) -> Path:
    with path.open("wb") as file:
        np.save(file, array)
    return path


def write_npz(path: Path, **arrays: Any) -> Path:
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def pairs(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    return kspace.view(np.float32).reshape(*kspace.shape, 2)


def calgary_campinas(path: Path) -> Path:
    return write_hdf5(path, kspace=np.ascontiguousarray(np.moveaxis(KSPACE, 1, -1)).view(np.float32))


def write_mat5(path: Path, **arrays: Any) -> Path:
    with path.open("wb") as file:
        savemat(file, arrays)
    return path


def write_mat73(path: Path, **arrays: Any) -> Path:
    """Write a file as MATLAB does: reversed axes, complex numbers in fields, text in front."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            values = np.asarray(array).T
            if np.iscomplexobj(values):
                values = np.ascontiguousarray(values, np.complex64).view(FIELDS)
            file[name] = values
        file["note"] = np.frombuffer(b"text", np.uint8).astype(np.uint16)
        file["note"].attrs["MATLAB_class"] = np.bytes_("char")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    return path


def write_bart(path: Path, kspace: NDArray[Any]) -> Path:
    write_cfl(path, kspace)
    return path


def cmrxrecon(path: Path) -> Path:
    stored = np.ascontiguousarray(KSPACE.swapaxes(-1, -2))[:, None].view(FIELDS)
    return write_hdf5(path, kspace_full=stored)


MANY = complex_noise(2, 9, 4, 5)
IN_MATLAB = KSPACE.transpose(2, 3, 1, 0)
MASK = np.arange(16)[None] % 2 == 0
ACQUIRED = KSPACE * (np.arange(16) < 14)  # of Calgary-Campinas
FORMS: dict[str, tuple[Callable[[Path], Path], NDArray[np.complex64], dict[str, Any]]] = {
    "npy": (lambda path: write_npy(path, KSPACE), KSPACE, {}),
    "npy, double precision": (lambda path: write_npy(path, KSPACE.astype(complex)), KSPACE, {}),
    "npy, one image": (lambda path: write_npy(path, KSPACE[0, 0]), KSPACE[:1, :1], {}),
    "npy, reversed": (lambda path: write_npy(path, KSPACE.T), KSPACE, {"axes": ["width", "height", "coil", "slice"]}),
    "npy, one slice": (lambda path: write_npy(path, KSPACE[0]), KSPACE[:1], {"axes": ["coil", "height", "width"]}),
    "npz": (lambda path: write_npz(path, kspace=pairs(KSPACE)), KSPACE, {}),
    "npz, named": (lambda path: write_npz(path, data=KSPACE, other=1), KSPACE, {"variable": "data"}),
    "HDF5": (lambda path: write_hdf5(path, kspace=KSPACE), KSPACE, {}),
    "HDF5, named": (lambda path: write_hdf5(path, data=KSPACE, kspace=1), KSPACE, {"variable": "data"}),
    "HDF5, one coil": (lambda path: write_hdf5(path, kspace=KSPACE[:, 0]), KSPACE[:, :1], {}),
    "HDF5, pairs": (lambda path: write_hdf5(path, kspace=pairs(KSPACE)), KSPACE, {}),
    "HDF5, pairs of one coil": (lambda path: write_hdf5(path, kspace=pairs(KSPACE[:, 0])), KSPACE[:, :1], {}),
    "Calgary-Campinas": (calgary_campinas, ACQUIRED, {}),
    "CMRxRecon": (cmrxrecon, KSPACE, {}),
    **{
        f"MATLAB {version}{kind}": (partial(save, write), expected, options)
        for version, write in (("5", write_mat5), ("7.3", write_mat73))
        for kind, save, expected, options in (
            ("", lambda write, path: write(path, kspace=IN_MATLAB, mask=MASK), KSPACE, {}),
            (", the only complex", lambda write, path: write(path, k=IN_MATLAB, mask=MASK), KSPACE, {}),
            (", named", lambda write, path: write(path, a=IN_MATLAB, b=2 * IN_MATLAB), KSPACE, {"variable": "a"}),
            (", one image", lambda write, path: write(path, kspace=IN_MATLAB[..., 0, 0]), KSPACE[:1, :1], {}),
            (", pairs", lambda write, path: write(path, kspace=pairs(IN_MATLAB.copy())), KSPACE, {}),
            (
                ", one slice",
                lambda write, path: write(path, kspace=IN_MATLAB[..., 0]),
                KSPACE[:1],
                {"axes": ["height", "width", "coil"]},
            ),
            (
                ", one slice, written by Python",
                lambda write, path: write(path, kspace=IN_MATLAB[..., :1]),
                KSPACE[:1],
                {},
            ),
            (
                ", times",
                lambda write, path: write(path, kspace=np.stack([IN_MATLAB, 2 * IN_MATLAB], -1)),
                np.concatenate([KSPACE, 2 * KSPACE]),
                {},
            ),
            (
                ", times of one coil",
                lambda write, path: write(
                    path, kspace_single=np.stack([IN_MATLAB[:, :, 0], 2 * IN_MATLAB[:, :, 0]], -1)
                ),
                np.concatenate([KSPACE, 2 * KSPACE])[:, :1],
                {},
            ),
        )
    },
    "MATLAB 5, one slice": (lambda path: write_mat5(path, kspace=IN_MATLAB[..., :1]), KSPACE[:1], {}),
    "BART": (lambda path: write_bart(path, from_slices(KSPACE)), KSPACE, {}),
    "BART, more coils than pixels": (lambda path: write_bart(path, from_slices(MANY)), MANY, {}),
    "BART, slices of a volume": (
        lambda path: write_bart(path, from_slices(KSPACE).transpose(2, 0, 1, *range(3, 14))),
        KSPACE,
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_kspace_comes_back_whatever_the_file_is_called(tmp_path: Path, form: str) -> None:
    write, expected, options = FORMS[form]
    raw = read(write(tmp_path / "file.xyz"), **options)
    assert raw.shape == expected.shape
    assert raw.source == {"format": find_format(tmp_path / "file.xyz").name}
    for index in range(len(expected)):
        values = raw.read_slice(index)
        assert values.dtype == np.complex64
        np.testing.assert_array_equal(values, expected[index])


@pytest.mark.parametrize("write", [write_npz, write_hdf5, write_mat5, write_mat73])
def test_masks_are_found(tmp_path: Path, write: Callable[..., Path]) -> None:
    lines, points = np.arange(16) % 2 == 0, np.random.default_rng(0).random((12, 16)) < 0.5
    for mask in (lines, points):
        kspace = KSPACE * mask
        kspace = kspace.transpose(2, 3, 1, 0) if write in (write_mat5, write_mat73) else kspace
        np.testing.assert_array_equal(read(write(tmp_path / "with", kspace=kspace, mask=mask)).mask, mask)
        without = write(tmp_path / "without", kspace=kspace)
        assert read(without).mask is None
        acquired = np.stack([(kspace_slice != 0).any(axis=0) for kspace_slice in read(without).slices()])
        np.testing.assert_array_equal(find_mask(acquired), mask)


@pytest.mark.parametrize("write", [write_mat5, write_mat73])
def test_vectors_of_matlab_and_bart_are_rows_or_columns_as_they_lie(tmp_path: Path, write: Callable[..., Path]) -> None:
    lines = np.arange(16) % 2 == 0
    for mask in (lines[None], lines[:, None]):
        array = read_array(write(tmp_path / "mask.mat", mask=mask.astype(float)), "mask")
        np.testing.assert_array_equal(array, mask if mask.shape[1] == 1 else lines)
        array = read_array(write_bart(tmp_path / "mask.cfl", mask), "mask")
        np.testing.assert_array_equal(array, mask if mask.shape[1] == 1 else lines)


@pytest.mark.parametrize(
    ("shape", "axes", "problem"),
    [
        ((3, 12, 16), None, "(3, 12, 16), and it is not clear which of them are slices and coils"),
        ((12, 16, 4, 3), None, "it is not clear"),
        ((2, 3, 4, 12, 16), None, "it is not clear"),
        ((3, 12, 16), ["coil", "width"], "coil,width does not fit"),
        ((3, 12, 16), ["coil", "coil", "width"], "coil,coil,width does not fit"),
        ((3, 12, 16), ["coil", "height", "columns"], "coil,height,columns does not fit"),
        ((3, 12, 16), ["slice", "coil", "width"], "slice,coil,width does not fit"),
    ],
)
def test_axes_that_are_not_clear_are_asked_for(
    tmp_path: Path, shape: tuple[int, ...], axes: list[str] | None, problem: str
) -> None:
    with pytest.raises(ValueError, match="name the axes in this order, as in --axes") as error:
        read(write_npy(tmp_path / "kspace.npy", complex_noise(*shape)), axes)
    assert problem in str(error.value)


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def bruker(path: Path, name: str) -> Path:
    path.mkdir()
    for each in ("acqp", "method", "fid"):
        (path / each).write_text("##$ACQ_dim=2")
    return path / name


ODD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "npy, cut short": (lambda path: cut(write_npy(path, KSPACE)), "cannot be read as NumPy"),
    "npz, cut short": (lambda path: cut(write_npz(path, kspace=KSPACE)), "is it cut short?"),
    "HDF5, cut short": (lambda path: cut(write_hdf5(path, kspace=KSPACE)), "truncated file"),
    "empty": (lambda path: (path.write_bytes(b"") and path) or path, "none of the formats"),
    "text": (lambda path: (path.write_text("text") and path) or path, "none of the formats"),
    "folder": (lambda path: path.mkdir() or path, "it is a folder; expected a file"),
    "Bruker, folder": (lambda path: bruker(path, "."), "of Bruker ParaVision. Convert it to ISMRMRD"),
    "Bruker, fid": (lambda path: bruker(path, "fid"), "of Bruker ParaVision. Convert it to ISMRMRD"),
    "objects": (lambda path: write_npy(path, np.array([{}])), "Python objects"),
    "magnitudes": (lambda path: write_npy(path, abs(KSPACE)), "type float32; expected complex numbers"),
    "no slices": (lambda path: write_npy(path, KSPACE[:0]), "no samples"),
    "other names": (lambda path: write_hdf5(path, a=KSPACE, b=1), "no array 'kspace', but a, b; name k-space"),
    "no names": (lambda path: write_npz(path, a=KSPACE), "no 'kspace'; expected k-space under this name"),
    "group": (lambda path: write_hdf5(path, **{"kspace/a": KSPACE}), "it has no array 'kspace', but kspace"),
    "three axes of CMRxRecon": (
        lambda path: write_hdf5(path, kspace=np.zeros((3, 12, 16), FIELDS)),
        "axes of the lengths (16, 12, 3), and it is not clear",
    ),
    "Calgary-Campinas, cut short": (lambda path: cut(calgary_campinas(path)), "truncated file"),
    **{
        f"Calgary-Campinas, {kind}": (
            lambda path, values=values: write_hdf5(path, kspace=values),
            f"type {values.dtype}; expected complex numbers, or real and imaginary part in a last axis of length 2",
        )
        for kind, values in (
            ("odd number of channels", np.ones((3, 12, 16, 7), np.float32)),
            ("three axes", np.ones((12, 16, 8), np.float32)),
            ("five axes", np.ones((1, 3, 12, 16, 8), np.float32)),
            ("double precision", np.ones((3, 12, 16, 8))),
            ("magnitudes of coils", np.abs(KSPACE)),
        )
    },
    "coils last": (
        lambda path: write_hdf5(path, kspace=np.moveaxis(KSPACE, 1, -1)),
        "axes of the lengths (3, 12, 16, 4), and it is not clear",
    ),
    "empty array": (lambda path: write_hdf5(path, kspace=h5py.Empty(np.complex64)), "its array 'kspace' is empty"),
    "Calgary-Campinas, no slices": (
        lambda path: write_hdf5(path, kspace=np.ones((0, 12, 16, 8), np.float32)),
        "k-space has the shape (0, 12, 16, 8) and so no samples",
    ),
    **{
        f"MATLAB {version}, {kind}": (partial(save, write), message)
        for version, write in (("5", write_mat5), ("7.3", write_mat73))
        for kind, save, message in (
            ("cut short", lambda write, path: cut(write(path, kspace=IN_MATLAB)), "cannot be read"),
            (
                "three axes",
                lambda write, path: write(path, kspace=IN_MATLAB[..., 0]),
                "axes of the lengths (12, 16, 4), and it is not clear",
            ),
            (
                "two arrays",
                lambda write, path: write(path, a=IN_MATLAB, b=IN_MATLAB),
                "no array 'kspace', but a (12 x 16 x 4 x 3), b (12 x 16 x 4 x 3); name k-space (--variable)",
            ),
            ("magnitudes", lambda write, path: write(path, kspace=abs(IN_MATLAB)), "type float32; expected complex"),
        )
    },
    "BART, cut short": (
        lambda path: cut(write_bart(path.with_suffix(".cfl"), from_slices(KSPACE))),
        "expected 18432 for the dimensions",
    ),
    "BART, three-dimensional": (
        lambda path: write_bart(path.with_suffix(".hdr"), KSPACE),
        "k-space is three-dimensional",
    ),
    "two of CMRxRecon": (
        lambda path: write_hdf5(path, kspace1=np.zeros((1, 3, 12, 16), FIELDS), kspace2=np.zeros(3, FIELDS)),
        "it has kspace1, kspace2; expected one of them",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_damaged_and_odd_files_are_refused(tmp_path: Path, kind: str) -> None:
    write, message = ODD[kind]
    path = write(tmp_path / "kspace.xyz")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "kspace.h5", kspace=KSPACE)
    raw = read(path)
    cut(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} cannot be read as HDF5"):
        raw.read_slice(0)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such file"):
        read(tmp_path / "missing.npy")


def test_axes_of_formats_that_say_them_are_refused(tmp_path: Path) -> None:
    path = calgary_campinas(tmp_path / "kspace.h5")
    assert find_format(path).name == "HDF5 of Calgary-Campinas"
    with pytest.raises(ValueError, match="leave out --axes and --variable"):
        read(path, ["slice", "height", "width"])


def test_three_axes_in_hdf5_are_said_and_a_group_is_no_mask(tmp_path: Path) -> None:
    raw = read(write_hdf5(tmp_path / "scan.h5", kspace=KSPACE[0], **{"mask/a": 1}))
    assert raw.shape == (4, 1, 12, 16) and raw.mask is None
    assert "give --axes coil,height,width" in " ".join(raw.messages)
    assert read_array(tmp_path / "scan.h5", "mask") is None
    one = read(tmp_path / "scan.h5", ["coil", "height", "width"])
    assert one.shape == (1, 4, 12, 16) and one.messages == ()
