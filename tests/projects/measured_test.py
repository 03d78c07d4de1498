"""Tests of projects/measured: scans from a folder and from a local server, scores against definitions."""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from direct_hifimamba.data.fourier import image_to_kspace
from tests.extras import missing_packages

if missing_packages("measured"):
    pytest.skip("needs the extra 'measured'", allow_module_level=True)

ROOT = Path(__file__).parents[2]
MEASURED = os.environ.get("DIRECT_HIFIMAMBA_MEASURED")
needs_measured = pytest.mark.skipif(MEASURED is None, reason="DIRECT_HIFIMAMBA_MEASURED is not set")


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "projects" / "measured")
    return import_module("scans")


@pytest.fixture
def score(scans: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MPLBACKEND", "agg")
    return import_module("score")


@pytest.fixture
def kspace() -> np.ndarray:
    """K-space of two slices, three coils and 32 x 64 pixels."""
    rows, columns = np.mgrid[-1:1:32j, -1:1:64j]
    maps = np.stack([np.exp(-((rows - a) ** 2) - 1j * columns * a) for a in (-1, 0, 1)])
    images = (rows**2 + columns**2 < 0.7) * (1 + 0.3 * np.sin(9 * columns)) * maps
    noise = 0.01 * np.random.default_rng(0).standard_normal((2, 3, 32, 64, 2)).view(complex)[..., 0]
    return image_to_kspace((images[None] + noise).astype(np.complex64))


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server(tmp_path: Path, scans: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a local server that has the place of the public one; nothing is cached yet."""
    folder = tmp_path / "public"
    folder.mkdir()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    monkeypatch.setattr(scans, "PUBLIC", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv(scans.FOLDER_VARIABLE, raising=False)
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield folder
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def add_scan(scans: Any, monkeypatch: pytest.MonkeyPatch, name: str, path: Path, shape: tuple[int, ...]) -> None:
    """Register a scan that consists of this file, in the folder or on the server."""
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    source = {"repository": "some/body", "commit": "c0ffee", "path": "raw data/a.npy", "sha256": checksum}
    scan = {"shape": list(shape), "sha256": checksum, "axes": ["coil", "height", "width"], "sources": [source]}
    monkeypatch.setitem(scans.SCANS, name, scan)


def test_scans_are_downloaded_once_and_checked(
    scans: Any, server: Path, kspace: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = server / "some" / "body" / "c0ffee" / "raw data" / "a.npy"
    path.parent.mkdir(parents=True)
    np.save(path, kspace[0])
    content = path.read_bytes()
    add_scan(scans, monkeypatch, "a", path, (1, 3, 32, 64))
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(scans.UnavailableError, match="SHA256 hash of downloaded file"):
        scans.load_scan("a")
    path.write_bytes(content)
    np.testing.assert_array_equal(scans.load_scan("a"), kspace[:1])
    path.unlink()
    np.testing.assert_array_equal(scans.load_scan("a"), kspace[:1])


def test_a_scan_that_cannot_be_had_is_one_error(
    scans: Any, server: Path, kspace: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "b.npy", kspace)
    add_scan(scans, monkeypatch, "b", tmp_path / "b.npy", kspace.shape)
    with pytest.raises(scans.UnavailableError, match=r"b cannot be downloaded from http://127.0.0.1.*set DIRECT_HIFI"):
        scans.load_scan("b")
    with pytest.raises(scans.UnavailableError, match="ulf_p1_fse is read from a folder alone"):
        scans.load_scan("ulf_p1_fse")
    with pytest.raises(ValueError, match="no scan 'c'"):
        scans.load_scan("c")
    monkeypatch.setenv(scans.FOLDER_VARIABLE, str(tmp_path))
    np.testing.assert_array_equal(scans.load_scan("b"), kspace)
    np.save(tmp_path / "b.npy", 2 * kspace)
    with pytest.raises(ValueError, match=r"b.npy is not the file of the registry"):
        scans.load_scan("b")


def test_every_scan_has_place_checksum_and_licence(scans: Any) -> None:
    assert len(scans.SCANS) == 20
    for scan in scans.SCANS.values():
        assert scan["licence"] and scan["what"] and len(scan["shape"]) == 4 and len(scan["sha256"]) == 64
        for source in scan["sources"]:
            assert len(source["commit"]) == 40 and len(source["sha256"]) == 64 and "/" in source["repository"]


@needs_measured
def test_published_files_hold_what_is_in_the_folder(
    scans: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MEASURED is not None
    name = "twix_skyra_phantom2"
    ours = scans.load_scan(name)
    scan = scans.load_scan("under_sigpy_brain8_poisson")
    np.save(tmp_path / "published.npy", scan[0])
    (source,) = scans.SCANS["under_sigpy_brain8_poisson"]["sources"]
    assert hashlib.sha256((tmp_path / "published.npy").read_bytes()).hexdigest() == source["sha256"]

    published = Path(MEASURED, f"{name}.dat")
    assert hashlib.sha256(published.read_bytes()).hexdigest() == scans.SCANS[name]["sources"][0]["sha256"]
    if missing_packages("formats"):
        pytest.skip("the rest needs the extra 'formats'")
    monkeypatch.delenv(scans.FOLDER_VARIABLE)
    monkeypatch.setattr(scans, "_download", lambda name: published)
    read = scans.load_scan(name)
    scale = np.vdot(read, ours) / np.vdot(read, read)
    np.testing.assert_allclose(read * scale, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


def test_bands_and_psnr_follow_their_definitions(score: Any) -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(1, 2, (40, 48)).astype(np.float32)
    wave = np.cos(2 * np.pi * 14 / 48 * np.arange(48)) * np.ones((40, 1))  # 14 / 24 of the Nyquist frequency
    wave -= reference * (reference * wave).sum() / np.square(reference).sum()  # orthogonal: nothing is to be scaled
    image = (reference + 0.1 * wave).astype(np.float32)
    result = score.score(reference, 7 * image)
    fit = (reference * image).sum() / np.square(image).sum()
    error = fit * image - reference
    assert result.psnr == pytest.approx(10 * np.log10(reference.max() ** 2 / np.square(error).mean()), abs=1e-3)
    spectrum = np.square(np.abs(np.fft.fft2(reference)))
    radius = np.hypot(np.fft.fftfreq(40)[:, None], np.fft.fftfreq(48)) * 2
    limits = [*score.BANDS[:-1], 2]
    energies = [spectrum[(radius >= low) & (radius < high)].sum() for low, high in pairwise(limits)]
    total = sum(band * energy for band, energy in zip(result.bands, energies, strict=True))
    assert total == pytest.approx(np.square(error).sum() * error.size, rel=1e-3)  # Parseval
    assert result.bands[2] > 30 * max(result.bands[0], result.bands[1], result.bands[3])


@needs_measured
def test_masks_and_scores_are_those_of_the_protocol(score: Any, scans: Any) -> None:
    assert MEASURED is not None
    if not Path(MEASURED, "score.py").exists():
        pytest.skip("the folder has no score.py")
    specification = importlib.util.spec_from_file_location("protocol", Path(MEASURED, "score.py"))
    assert specification is not None and specification.loader is not None
    protocol = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(protocol)
    kspace = scans.load_scan("twix_skyra_phantom2")
    for rate in (4, 8):
        for width in (96, 128, 160, 256):
            np.testing.assert_array_equal(score.equispaced_columns(width, rate), protocol.equispaced(width, rate))
        case = score.Case("twix_skyra_phantom2", 0, rate, kspace[0])
        image = score.reconstruct_zero_filled(case)
        result = score.score(case.reference, image)
        assert (result.psnr, result.ssim) == pytest.approx(protocol.score(protocol.reference(kspace), image), rel=1e-4)


def test_scores_are_written_and_kept_images_are_used(
    score: Any, scans: Any, kspace: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "b.npy", kspace)
    add_scan(scans, monkeypatch, "b", tmp_path / "b.npy", kspace.shape)
    monkeypatch.setenv(scans.FOLDER_VARIABLE, str(tmp_path))
    arguments = [str(tmp_path / "out"), "--scans", "b", "ulf_p1_fse", "--accelerations", "4"]
    score.main(arguments)
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = {row["method"]: float(row["psnr"]) for row in csv.DictReader(file)}
    assert {"zero-filled", "CG-SENSE", "multicoil"} <= rows.keys()
    assert min(rows["CG-SENSE"], rows["multicoil"]) > rows["zero-filled"] + 2
    assert rows.get("BART", 99) > rows["zero-filled"]
    assert "| b, slice 1, 4x |" in (tmp_path / "out" / "scores.md").read_text()
    assert (tmp_path / "out" / "images.png").stat().st_size > 10_000

    before = (tmp_path / "out" / "scores.csv").read_text()
    monkeypatch.setattr(score, "reconstruct_cg_sense", lambda case: pytest.fail("The image is there already."))
    score.main([*arguments, "--weights"])
    assert [line for line in before.splitlines() if "multicoil" not in line] == (
        tmp_path / "out" / "scores.csv"
    ).read_text().splitlines()


def test_checkpoints_have_a_label_and_one_or_more_files(score: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert score.parse_checkpoints("mine=a.pt,runs/b.pt") == ("mine", [Path("a.pt"), Path("runs/b.pt")])
    for word in ("a.pt", "=a.pt", "mine="):
        with pytest.raises(SystemExit, match="2"):
            score.main(["out", "--checkpoint", word])
        assert f"'{word}' is not of the form LABEL=FILE" in capsys.readouterr().err
