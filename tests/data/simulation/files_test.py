import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from direct.data.datasets import FastMRIDataset

from direct_hifimamba import cli
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.provenance import read_provenance
from direct_hifimamba.data.simulation.files import write_samples
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample

SMALL = SampleOptions(size=(96, 100), num_coils=(4, 5), masks=("equispaced",))


def test_file_holds_the_slice_and_what_it_was_made_of(tmp_path: Path) -> None:
    paths = write_samples(tmp_path / "out", 2, SMALL, seed=3)
    for index, path in enumerate(paths):
        drawn = draw_sample((3, 0, index), SMALL)
        with h5py.File(path) as file:
            for name in ("kspace", "sensitivity_map", "target"):
                assert np.array_equal(file[name][0], getattr(drawn, name))
            assert np.array_equal(file["mask"], drawn.mask[0])
            assert np.array_equal(file["noise_covariance"], drawn.noise_covariance)
        provenance = read_provenance(path)
        assert provenance is not None
        assert provenance["origin"] == "simulated"
        assert provenance["subject"] == f"{drawn.record['anatomy']} {path.stem}"  # nobody else is seen
        assert provenance["drawn"]["snr"] == drawn.record["snr"]


def test_run_is_completed_but_not_mixed_with_another(tmp_path: Path) -> None:
    first, _ = write_samples(tmp_path, 2, SMALL)
    content = first.read_bytes()
    first.unlink()
    assert len(write_samples(tmp_path, 3, SMALL)) == len(list(tmp_path.iterdir())) == 3
    assert first.read_bytes() == content
    with pytest.raises(FileExistsError, match="of another simulation"):
        write_samples(tmp_path, 1, SampleOptions(size=(96, 104), masks=("equispaced",)))


def test_only_masks_of_columns_are_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="masks are"):
        write_samples(tmp_path, 1, SampleOptions())
    with pytest.raises(ValueError, match="number of slices is 0"):
        write_samples(tmp_path, 0, SMALL)
    (path,) = write_samples(tmp_path, 1, SMALL, mask=MaskOptions("FastMRIEquispaced", 4, 0.08))
    with h5py.File(path) as file:
        assert file["mask"][()].mean() == pytest.approx(0.25, abs=0.02)


def test_command_writes_what_direct_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--coils", "4", "--snr", "30", "--size", "96", "100", "--voxel-size", "1.5", "--seed", "2"]
    cli.main(["simulate", "random", str(tmp_path), *arguments])
    assert capsys.readouterr().out == f"1 files in {tmp_path}, simulated\n"
    (path,) = tmp_path.iterdir()
    drawn = json.loads(h5py.File(path).attrs["provenance"])["drawn"]
    assert (drawn["num_coils"], drawn["pixel_size"]) == (4, 1.5)
    assert drawn["snr"] == pytest.approx(30)
    sample = FastMRIDataset(tmp_path, pass_mask=True)[0]
    assert sample["kspace"].shape == (4, 96, 100)
    assert sample["sampling_mask"].shape == (1, 96, 100, 1)


@pytest.mark.parametrize("words", ["random OUT --phase 2", "icbm152 OUT --number 3", "icbm152 OUT --heads OUT"])
def test_options_that_do_not_apply_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["simulate", *words.replace("OUT", str(tmp_path / "out")).split()])
    assert f"{words.split()[2]} does not apply to the source {words.split()[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["num_coils --coils 0", "snr --snr 0", "pixel_size --voxel-size 0"])
def test_zero_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    name, *options = words.split()
    with pytest.raises(SystemExit):
        cli.main(["simulate", "random", str(tmp_path / "out"), *options])
    assert f"{name} is (0" in capsys.readouterr().err
