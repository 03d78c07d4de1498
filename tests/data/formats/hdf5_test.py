"""Tests of direct_hifimamba.data.formats.hdf5."""

import h5py
import numpy as np
import pytest
from direct.data.datasets import CMRxReconDataset, FastMRIDataset

from direct_hifimamba.data.formats.hdf5 import (
    hash_content,
    kspace_shape,
    read_slices,
    write_cmrxrecon,
    write_view,
    write_volume,
)
from direct_hifimamba.data.fourier import image_to_kspace
from direct_hifimamba.data.masks import MaskOptions, draw_mask
from direct_hifimamba.data.provenance import read_provenance

RNG = np.random.default_rng(0)


def _random_complex(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)).astype(np.complex64)


@pytest.mark.parametrize("coils", [(), (3,)])
def test_volume_comes_back_through_the_dataset_of_direct(tmp_path, coils):
    kspace = _random_complex(2, *coils, 12, 40)
    mask = draw_mask(MaskOptions("FastMRIEquispaced", 4, 0.1), (12, 40), "a.h5", 0).samples
    write_volume(tmp_path / "a.h5", iter(kspace), {"origin": "test"}, mask)

    dataset = FastMRIDataset(tmp_path, pass_mask=True)
    assert len(dataset) == 2
    for index in range(2):
        sample = dataset[index]
        np.testing.assert_array_equal(sample["kspace"], kspace[index] if coils else kspace[index][None])
        np.testing.assert_array_equal(sample["sampling_mask"], np.broadcast_to(mask[:, None], (1, 12, 40, 1)))
        assert sample["acs_mask"].sum() >= 12 * 4
        assert sample["acs_mask"][~sample["sampling_mask"]].sum() == 0
        assert "attrs" not in sample


def test_attributes_are_those_of_the_root_sum_of_squares(tmp_path):
    image = _random_complex(2, 3, 8, 10)
    write_volume(tmp_path / "a.h5", image_to_kspace(image.reshape(-1, 8, 10)).reshape(image.shape), {"number": 1})
    expected = np.linalg.norm(image, axis=1)
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"kspace"}
        assert file.attrs["max"] == pytest.approx(expected.max())
        assert file.attrs["norm"] == pytest.approx(np.linalg.norm(expected))
    assert read_provenance(tmp_path / "a.h5") == {"number": 1}


def test_interrupted_write_leaves_nothing(tmp_path):
    def slices():
        yield _random_complex(8, 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_volume(tmp_path / "a.h5", slices(), {})
    assert list(tmp_path.iterdir()) == []


def test_foreign_file_has_no_provenance(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    h5py.File(tmp_path / "plain.h5", "w").close()
    assert read_provenance(tmp_path / "text.h5") is None
    assert read_provenance(tmp_path / "plain.h5") is None
    assert read_provenance(tmp_path) is None


def _layout(raw: str, slices: list[int], shape: tuple[int, ...], dtype: type) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((len(slices), *shape[1:]), dtype)
    for position, index in enumerate(slices):
        layout[position] = h5py.VirtualSource(raw, "kspace", shape, dtype)[index]
    return layout


def test_links_are_the_same_as_a_copy(tmp_path):
    kspace = _random_complex(5, 3, 8, 10)
    (tmp_path / "raw").mkdir()
    with h5py.File(tmp_path / "raw" / "a.h5", "w") as file:
        file["kspace"] = kspace
    with h5py.File(tmp_path / "raw" / "pairs.h5", "w") as file:
        file["kspace"] = kspace.view(np.float32).reshape(*kspace.shape, 2)
    for folder in ("copy", "link", "pairs"):
        (tmp_path / folder).mkdir()
    kept = [0, 1, 4]
    write_volume(tmp_path / "copy" / "a.h5", kspace[kept], {}, header=b"head")
    write_volume(
        tmp_path / "link" / "a.h5", _layout("../raw/a.h5", kept, kspace.shape, np.complex64), {}, header=b"head"
    )
    pairs = _layout("../raw/pairs.h5", kept, (*kspace.shape, 2), np.float32)
    write_volume(tmp_path / "pairs" / "a.h5", pairs, {}, header=b"head")
    attributes = []
    for folder in ("copy", "link", "pairs"):
        with h5py.File(tmp_path / folder / "a.h5") as file:
            np.testing.assert_array_equal(list(read_slices(file)), kspace[kept])
            assert kspace_shape(file) == (3, 3, 8, 10)
            assert file.attrs["sha256"] == hash_content(file)
            attributes.append(dict(file.attrs))
    assert attributes[0] == attributes[1] == attributes[2]


@pytest.mark.parametrize("change", ["kspace", "order", "shape", "header"])
def test_checksum_covers_kspace_and_header(tmp_path, change):
    kspace = _random_complex(4, 6, 8)
    write_volume(tmp_path / "a.h5", kspace, {}, header=b"head")
    changed = {"order": kspace[::-1], "shape": kspace.reshape(4, 8, 6)}.get(change, kspace.copy())
    if change == "kspace":
        changed.view(np.uint8)[2, 3, 5] ^= 1
    write_volume(tmp_path / "b.h5", changed, {}, header=b"heat" if change == "header" else b"head")
    hashes = []
    for name in ("a.h5", "b.h5"):
        with h5py.File(tmp_path / name) as file:
            hashes.append(hash_content(file))
    assert hashes[0] != hashes[1]


def test_views_add_a_mask_and_nothing_else(tmp_path):
    kspace = _random_complex(2, 3, 12, 40)
    for folder in ("volume", "view"):
        (tmp_path / folder).mkdir()
    write_volume(tmp_path / "volume" / "a.h5", kspace, {})
    lines = draw_mask(MaskOptions("FastMRIRandom", 4, 0.1), (12, 40), "a.h5", 0).samples
    write_view(tmp_path / "view" / "a.h5", tmp_path / "volume" / "a.h5", lines, {"number": 1})
    assert read_provenance(tmp_path / "view" / "a.h5") == {"number": 1}
    (tmp_path / "view").rename(tmp_path / "other")
    sample, plain = FastMRIDataset(tmp_path / "other", pass_mask=True)[1], FastMRIDataset(tmp_path / "volume")[1]
    np.testing.assert_array_equal(sample["kspace"], kspace[1])
    np.testing.assert_array_equal(sample["sampling_mask"][0, 0, :, 0], lines)
    assert sample["scaling_factor"] == plain["scaling_factor"]
    (tmp_path / "volume" / "a.h5").unlink()
    with pytest.raises(KeyError):
        FastMRIDataset(tmp_path / "other", pass_mask=True)


@pytest.mark.parametrize("coils", [(), (3,)])
def test_cmrxrecon_form_holds_masks_of_any_shape(tmp_path, coils):
    kspace = _random_complex(2, *coils, 12, 40)
    (tmp_path / "out").mkdir()
    write_volume(tmp_path / "a.h5", kspace, {})
    mask = draw_mask(MaskOptions("Radial", 4), (12, 40), "a.h5", 0).samples
    write_cmrxrecon(tmp_path / "out" / "a.h5", tmp_path / "a.h5", mask, {"number": 1})
    assert read_provenance(tmp_path / "out" / "a.h5") == {"number": 1}
    dataset = CMRxReconDataset(
        tmp_path, filenames_filter=[tmp_path / "out" / "a.h5"], kspace_key="kspace", extra_keys=("mask",)
    )
    assert len(dataset) == 2
    for index in range(2):
        np.testing.assert_array_equal(dataset[index]["kspace"], kspace[index] if coils else kspace[index][None])
        np.testing.assert_array_equal(dataset[index]["sampling_mask"][0, ..., 0], mask)
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        np.testing.assert_array_equal(list(read_slices(file)), kspace)
