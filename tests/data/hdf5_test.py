"""Tests of direct_hifimamba.data.hdf5."""

import h5py
import numpy as np
import pytest
from direct.data.datasets import FastMRIDataset

from direct_hifimamba.data.fourier import image_to_kspace
from direct_hifimamba.data.hdf5 import read_provenance, write_volume
from direct_hifimamba.data.masks import MaskOptions, draw_mask

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
