"""Tests of direct_hifimamba.data.formats.optional, and of the modules that import optional packages."""

import sys
from pathlib import Path

import pytest

from direct_hifimamba import cli
from direct_hifimamba.data.formats.images import import_writer
from direct_hifimamba.data.formats.optional import optional_package
from direct_hifimamba.data.formats.registry import read
from tests.data.formats.scans import KSPACE, lines_of, write_ismrmrd


def break_package(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """Put a package into the place of another one that raises what many raise with another version of NumPy."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise AttributeError('`np.float_` was removed')")
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(("form", "package", "extra"), [("nifti", "nibabel", "data"), ("dicom", "pydicom", "formats")])
def test_broken_packages_of_images_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, package: str, extra: str
) -> None:
    break_package(monkeypatch, tmp_path, package)
    monkeypatch.delitem(sys.modules, f"direct_hifimamba.data.formats.{form}", raising=False)
    with pytest.raises(ImportError, match=rf"need {package}, .*AttributeError: `np.float_` .*hifimamba\[{extra}\]"):
        import_writer(form)


def test_a_broken_package_of_raw_data_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ismrmrd")
    write_ismrmrd(tmp_path / "scan.h5", list(lines_of(KSPACE)))
    break_package(monkeypatch, tmp_path, "ismrmrd")
    with pytest.raises(
        ValueError, match=r"scan.h5 cannot be read as ISMRMRD: ISMRMRD files need ismrmrd, which cannot"
    ):
        read(tmp_path / "scan.h5")


def test_a_missing_package_is_named() -> None:
    with (
        pytest.raises(ImportError, match=r"^Files need nothing; install it: pip install 'direct-hifimamba\[data\]'$"),
        optional_package("nothing", "Files", extra="data"),
    ):
        import nothing_of_this_name  # noqa: F401


def test_a_command_that_cannot_be_loaded_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_package(monkeypatch, tmp_path, "jinja2")
    for name in list(sys.modules):
        if name.startswith(("direct_hifimamba.benchmark", "direct_hifimamba.commands")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["benchmark", "none.yaml"])
    assert "The command benchmark cannot be loaded: AttributeError: `np.float_`" in capsys.readouterr().err
