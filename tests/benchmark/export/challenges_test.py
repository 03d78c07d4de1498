"""Submissions on look-alikes of the challenges' data, and their scores."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat
from sewar.full_ref import vifp
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from direct_hifimamba import cli
from direct_hifimamba.benchmark.export.challenges import export_submission, score_submission
from tests.data import lookalikes


def noisy(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=images.shape)
    return (images + 0.05 * images.max() * noise).astype(np.float32)


def write_prediction(path: Path, images: np.ndarray) -> None:
    """As `direct predict` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["reconstruction"] = images
        file["sampling_mask"] = np.ones(1)


def read(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["reconstruction"][()]


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(map(str, words)))
    return capsys.readouterr().err


def test_fastmri(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = lookalikes.fastmri(tmp_path, "multi")
    data, predictions, out = tmp_path / "multicoil_val", tmp_path / "predictions", tmp_path / "submission"
    images = {path.name: noisy(content[path.name]) for path in data.iterdir()}
    for name, volume in images.items():
        write_prediction(predictions / name, volume)
    cli.main(["export", "fastmri", str(predictions), str(out), "--data", str(data)])
    assert {path.name for path in out.iterdir()} == images.keys()
    for name, volume in images.items():
        np.testing.assert_array_equal(read(out / name), volume)

    cli.main(["score", "fastmri", str(out), str(data), "--output", str(tmp_path / "scores.csv")])
    output = capsys.readouterr().out
    assert "\nfastmri: SSIM 0." in output and "mean of 3 volumes" in output
    with (tmp_path / "scores.csv").open() as file:
        rows = {row["volume"]: row for row in csv.DictReader(file)}
    assert rows.keys() == images.keys()
    for name, volume in images.items():
        target, error = content[name].astype(float), volume - content[name]
        assert float(rows[name]["PSNR"]) == pytest.approx(
            10 * np.log10(target.max() ** 2 / np.mean(error**2)), rel=1e-5
        )
        assert float(rows[name]["NMSE"]) == pytest.approx(np.sum(error**2) / np.sum(target**2), rel=1e-4)

    # The same from a zip file, and from k-space where a reference holds no images.
    shutil.make_archive(str(tmp_path / "archive"), "zip", out)
    with h5py.File(data / "file1000000.h5", "r+") as opened:
        del opened["reconstruction_rss"]
    again = score_submission("fastmri", tmp_path / "archive.zip", data)
    for score in again:
        assert score.values["PSNR"] == pytest.approx(float(rows[score.name]["PSNR"]), rel=1e-5)

    write_prediction(predictions / "file1000000.h5", np.zeros((8, 48, 34)))
    write_prediction(predictions / "file1000007.h5", np.full((8, 24, 24), np.nan))
    message = fails(capsys, "export", "fastmri", predictions, tmp_path / "new", "--data", data)
    assert "is no submission: file1000000.h5 has the shape (8, 48, 34), not (8, 24, 24) and 1 more" in message
    (predictions / "file1000000.h5").unlink()
    (predictions / "file1000007.h5").unlink()
    message = fails(capsys, "export", "fastmri", predictions, tmp_path / "new", "--data", data)
    assert f"{predictions} lacks file1000000.h5 and 1 more of the 3 volumes of {data}" in message
    message = fails(capsys, "score", "fastmri", predictions, data)
    assert f"{predictions} lacks file1000000.h5 and 1 more" in message
    write_prediction(predictions / "other.h5", images["file1000017.h5"])
    (data / "file1000000.h5").unlink()
    (data / "file1000007.h5").unlink()
    assert "has other.h5, of which" in fails(capsys, "export", "fastmri", predictions, tmp_path / "new", "--data", data)
    assert "exists already" in fails(capsys, "export", "fastmri", predictions, out)
    assert "has no HDF5 files" in fails(capsys, "export", "fastmri", tmp_path / "missing", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    reference = data / "file1000017.h5"
    assert f"The output is {reference}; expected" in fails(capsys, "score", "fastmri", out, data, "--output", reference)
    assert f"{reference} is no zip file" in fails(capsys, "score", "fastmri", reference, data)
    (predictions / "other.h5").unlink()
    with h5py.File(reference, "r+") as opened:
        del opened["kspace"]
    message = fails(capsys, "export", "fastmri", predictions, tmp_path / "new", "--data", data)
    assert f"{reference} has no array 'kspace'" in message


def test_calgary_campinas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size, references = (44, 42), tmp_path / "references"
    predictions, out = tmp_path / "predictions", tmp_path / "submission"
    for channels in (12, 32):
        content = lookalikes.calgary_campinas(
            tmp_path / str(channels), coils=channels, num_slices=2, size=size, num_empty=50
        )
        name = "e13992s3_P09216.7.h5"
        path = references / f"{channels}" / f"c{channels}.h5"
        path.parent.mkdir(parents=True)
        shutil.move(tmp_path / str(channels) / "Val" / name, path)
        for acceleration in (5, 10):
            # With and without the outer slices.
            images = noisy(content[name])
            if acceleration == 10:
                images = np.pad(images, ((50, 50), (0, 0), (0, 0)))
            write_prediction(predictions / f"{channels}-channel-R={acceleration}" / path.name, images)
    cli.main(["export", "calgary-campinas", str(predictions), str(out), "--data", str(references)])
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.h5")} == {
        f"{track}/{channels}-channel-R={acceleration}/c{channels}.h5"
        for track, channels in (("Track01", 12), ("Track02", 12), ("Track02", 32))
        for acceleration in (5, 10)
    }

    # In the units of numpy's inverse transform, by which the challenge makes its references.
    with h5py.File(references / "12" / "c12.h5") as file:
        kspace = file["kspace"][50:-50].view(np.complex64)
    kspace[:, :, int(np.ceil(0.85 * size[1])) :] = 0
    target = np.linalg.norm(np.fft.ifft2(kspace, axes=(1, 2)), axis=-1)
    submitted = read(out / "Track01/12-channel-R=5/c12.h5")
    assert submitted.shape == (2, *size)
    assert np.abs(submitted - target).max() < 0.4 * target.max()
    scores = {score.name: score.values for score in score_submission("calgary-campinas", out, references)}
    assert len(scores) == 6
    maxima = target.max(axis=(1, 2), keepdims=True)
    pairs = list(zip(target / maxima, submitted / maxima, strict=True))
    values = scores["Track01/12-channel-R=5/c12.h5"]
    assert values == scores["Track02/12-channel-R=5/c12.h5"]
    assert values["VIF"] == pytest.approx(np.mean([vifp(*pair, sigma_nsq=0.4) for pair in pairs]), rel=1e-4)
    ranges = [np.ptp(pair) for pair in pairs]
    psnr = [peak_signal_noise_ratio(*pair, data_range=value) for pair, value in zip(pairs, ranges, strict=True)]
    assert values["PSNR"] == pytest.approx(np.mean(psnr), rel=1e-4)
    capsys.readouterr()
    cli.main(["score", "calgary-campinas", str(out), str(references)])
    assert capsys.readouterr().out.count("mean of 1 volumes") == 6

    shutil.rmtree(predictions / "32-channel-R=5")
    shutil.rmtree(predictions / "32-channel-R=10")
    assert export_submission("calgary-campinas", predictions, tmp_path / "track_1", references / "12") == 2
    assert [path.name for path in (tmp_path / "track_1").iterdir()] == ["Track01"]
    write_prediction(predictions / "12-channel-R=10" / "c12.h5", np.zeros((99, *size)))
    command = ("export", "calgary-campinas", predictions, tmp_path / "new", "--data", references)
    assert "12-channel-R=10/c12.h5 has the shape (99, 44, 42), not (2, 44, 42)" in fails(capsys, *command)
    (predictions / "12-channel-R=10" / "c12.h5").rename(predictions / "12-channel-R=10" / "other.h5")
    assert "lacks 12-channel-R=10/c12.h5 of the 2 volumes" in fails(capsys, *command)
    (predictions / "12-channel-R=10").rename(predictions / "somewhere")
    assert "'somewhere'; expected such as 12-channel-R=5" in fails(capsys, *command)


TREE = "TaskR1/MultiCoil/{modality}/ValidationSet/{kind}_TaskR1/Center001/UIH_30T_umr780/P007"


def write_kspace(path: Path, kspace: np.ndarray, key: str) -> None:
    """As MATLAB 7.3: real and imaginary part are fields, and the axes are in reverse."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = np.dtype([("real", np.float32), ("imag", np.float32)])
    with h5py.File(path, "w") as file:
        file[key] = np.ascontiguousarray(kspace).view(fields)


def matlab_rank(images: np.ndarray, slices: list[int], frames: list[int]) -> np.ndarray:
    """The challenge's crop of MATLAB images (x, y, slice, frame), with numbers from 1 as there."""

    def chosen(length: int, wanted: int) -> np.ndarray:
        first, last = length // 2 + 1 + int(np.ceil(-wanted / 2)), length // 2 + int(np.ceil(wanted / 2))
        return np.arange(first, last + 1) - 1

    height, width = images.shape[:2]
    rows, columns = chosen(height, int(height / 3 + 0.5)), chosen(width, int(width / 2 + 0.5))
    return images[np.ix_(rows, columns, np.array(slices) - 1, np.array(frames) - 1)]


def write_cmrxrecon(data: Path, references: Path, predictions: Path) -> dict[str, list[np.ndarray]]:
    """K-space, references and noisy predictions; returns the ranked parts of the last two by names of volumes."""
    height, width, coils = 46, 31, 2
    volumes = {
        "Cine/cine_sax_kus_Uniform8": (5, 4, [1, 2], [1, 2, 3]),
        "Mapping/T1map_kus_ktRadial16": (4, 5, [2, 3], [1, 2, 3, 4]),
        "BlackBlood/blackblood_kus_Uniform8": (1, 2, [1, 2], [1]),
    }
    expected = {}
    for name, (frames, slices, ranked_slices, ranked_frames) in volumes.items():
        modality, _, stem = name.partition("/")
        folder = TREE.format(modality=modality, kind="UnderSample")
        images = np.stack([lookalikes.magnitude(seed, slices, height, width) for seed in range(frames)])
        coil_images = lookalikes.measure(images.reshape(-1, height, width), coils, 0)
        kspace = lookalikes.centred_fft(coil_images).reshape(frames, slices, coils, height, width).swapaxes(-1, -2)
        kspace = kspace[0] if frames == 1 else kspace
        write_kspace(data / folder / f"{stem}.mat", kspace, "kus")
        full = references / TREE.format(modality=modality, kind="FullSample") / f"{stem.partition('_kus')[0]}.mat"
        prediction = noisy(images)
        write_prediction((predictions / folder / stem).with_suffix(".mat"), prediction.reshape(-1, height, width))
        pair = (part.transpose(2, 3, 1, 0) for part in (images, prediction))
        ranked = [matlab_rank(part, ranked_slices, ranked_frames) for part in pair]
        expected[f"{folder}/{stem}.mat"] = ranked
        if modality == "Cine":  # the challenge's own reference; the others are fully sampled k-space
            full.parent.mkdir(parents=True)
            savemat(full, {"img4ranking": ranked[0]})
        else:
            write_kspace(full, kspace, "kspace_full")
    return expected


def test_cmrxrecon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, references, predictions, out = (tmp_path / name for name in ("data", "references", "predictions", "out"))
    expected = write_cmrxrecon(data, references, predictions)
    cli.main(["export", "cmrxrecon", str(predictions), str(out), "--data", str(data)])
    assert [path.name for path in out.iterdir()] == ["Submission.zip"]
    with zipfile.ZipFile(out / "Submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(expected)
        for name, (_, prediction) in expected.items():
            with archive.open(name) as file:
                stored = loadmat(file)["img4ranking"]
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(stored, prediction.squeeze() if "black" in name else prediction)

    scores = {score.name: score for score in score_submission("cmrxrecon", out, references)}
    for name, pair in expected.items():
        reference, images = ([image / np.percentile(image, 99.5) for image in flat(part)] for part in pair)
        ssim = [structural_similarity(a, b, data_range=a.max()) for a, b in zip(reference, images, strict=True)]
        assert scores[name].values["SSIM"] == pytest.approx(np.mean(ssim), rel=1e-4)
        nmse = [np.sum((a - b) ** 2) / np.sum(a**2) for a, b in zip(reference, images, strict=True)]
        assert scores[name].values["NMSE"] == pytest.approx(np.mean(nmse), rel=1e-4)
    assert {score.group for score in scores.values()} == {"TaskR1/Cine", "TaskR1/Mapping", "TaskR1/BlackBlood"}

    message = fails(capsys, "score", "cmrxrecon", predictions, references)
    assert f"{predictions / 'Submission.zip'} is missing" in message
    assert "give the challenge's folder" in fails(capsys, "export", "cmrxrecon", predictions, tmp_path / "new")
    shutil.rmtree(predictions / "TaskR1/MultiCoil/Cine")
    shutil.rmtree(predictions / "TaskR1/MultiCoil/Mapping")
    message = fails(capsys, "export", "cmrxrecon", predictions, tmp_path / "new", "--data", data)
    assert "lacks TaskR1/MultiCoil/Cine" in message and "and 1 more of the 3 volumes" in message
    shutil.rmtree(references / "TaskR1/MultiCoil/BlackBlood")
    assert "of which" in fails(capsys, "score", "cmrxrecon", out / "Submission.zip", references)


def flat(images: np.ndarray) -> np.ndarray:
    """Images (x, y, slice, frame) as (image, x, y)."""
    return images.reshape(*images.shape[:2], -1).transpose(2, 0, 1)
