"""The built distributions in an environment of their own, which sees the dependencies of the running one."""

import ctypes
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from direct_hifimamba import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "*.so", "build", "dist", "*_output", "outputs")

# Finds model, configuration and engine as DIRECT does, in the processes named by its arguments. `PROBE_IMPORTS` is
# imported as by a console script, in spawned processes too: they run this file again, but for its main part.
PROBE = """
import importlib, json, os, sys

import torch
from torch.utils.data import DataLoader, Dataset

if "PROBE_IMPORTS" in os.environ:
    importlib.import_module(os.environ["PROBE_IMPORTS"])


def find():
    import direct.environment as environment

    model = environment.load_model_from_name("hifimamba.hifimamba.HiFiMambaV2")
    config = environment.load_model_config_from_name("hifimamba.hifimamba.HiFiMambaV2")
    engine = environment.str_to_class("direct.nn.hifimamba.hifimamba_engine", "HiFiMambaV2Engine")
    return [sys.modules[found.__module__].__file__ for found in (model, config, engine)]


def put_found(rank, queue):
    queue.put(find())


def find_spawned():
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(put_found, (queue,))
    return queue.get()


class Finder(Dataset):
    def __getitem__(self, index):
        return find()


def find_in_worker():
    loader = DataLoader(Finder(), batch_size=None, sampler=[0], num_workers=1, multiprocessing_context="spawn")
    return next(iter(loader))


if __name__ == "__main__":
    processes = {"here": find, "spawned": find_spawned, "worker": find_in_worker}
    print(json.dumps([processes[name]() for name in sys.argv[1:]]))
"""


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the source tree; `variables` are added to its environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    result = subprocess.run(
        command, cwd=Path(command[0]).parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def build_extension(sources: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `setup.py` in a copy of what it reads; `variables` are added to its environment."""
    shutil.copytree(ROOT / "direct_hifimamba", sources / "direct_hifimamba", ignore=NOT_SOURCES)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "direct_hifimamba_hook.py"):
        shutil.copy(ROOT / name, sources)
    command = (sys.executable, "setup.py", "--quiet", *command)
    return subprocess.run(
        command, cwd=sources, env=os.environ | variables, capture_output=True, text=True, timeout=300, check=False
    )


def pip(python: Path, *arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "--quiet", "--no-input", *arguments)


def installed_files(environment: Path) -> set[Path]:
    return {path for path in environment.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("distributions")
    shutil.copytree(ROOT, folder / "sources", ignore=NOT_SOURCES)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "sources")
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Interpreter of a fresh environment without the project, its imports falling back on the running environment."""
    venv.create(tmp_path / "environment", symlinks=True)
    (site_packages,) = (tmp_path / "environment").rglob("site-packages")
    # Editable installs of the running environment do not follow: a path in a .pth file brings no .pth files of its own.
    (site_packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return next((tmp_path / "environment").glob("*/python"))


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.py"
    path.write_text(PROBE)
    return path


def check_found(result: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Every process of a probe found all three modules below `folder`."""
    for files in json.loads(result.stdout.splitlines()[-1]):
        assert [Path(file).name for file in files] == ["hifimamba.py", "config.py", "hifimamba_engine.py"]
        assert all(Path(file).is_relative_to(folder) for file in files), files


def test_wheel_is_complete_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "direct_hifimamba"
    sources = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    weights = package / "reconstruction" / "weights"
    sources |= {path.relative_to(ROOT).as_posix() for path in weights.rglob("*") if path.is_file()}
    assert sources | {"direct_hifimamba/py.typed", "direct_hifimamba_hook.py"} <= names
    assert not [name for name in names if name.endswith((".cpp", ".h"))]
    top_level = {name.split("/")[0] for name in names}
    assert top_level == {
        "direct_hifimamba",
        "direct_hifimamba_hook.py",
        f"direct_hifimamba-{__version__}.dist-info",
    }


def test_wheel_with_kernels_is_named_for_its_platform(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] == ["direct_hifimamba/ops/_native.abi3.so"]
    assert wheel.name.startswith(f"direct_hifimamba-{__version__}-cp312-abi3-")
    assert not wheel.name.endswith("-any.whl")


def test_wheel_without_kernels_is_for_any_platform(tmp_path: Path) -> None:
    result = build_extension(tmp_path, "bdist_wheel", CXX="false")
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name == f"direct_hifimamba-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "_native" in name]
        assert "Root-Is-Purelib: true" in archive.read(f"direct_hifimamba-{__version__}.dist-info/WHEEL").decode()


def test_a_release_without_kernels_is_not_built(tmp_path: Path) -> None:
    result = build_extension(tmp_path, "bdist_wheel", CXX="false", DIRECT_HIFIMAMBA_REQUIRE_KERNELS="1")
    assert result.returncode != 0
    assert "portable.cpp" in result.stderr
    assert not list(tmp_path.rglob("*.whl"))


def test_instruction_sets_are_those_of_the_compilers_target(tmp_path: Path) -> None:
    """By a compiler that makes code for another architecture than this one, as far as the package can see."""
    compiler = tmp_path / "compiler"
    refuses = '#!/bin/sh\ncase "$*" in\n*-mavx*) exit 1;;\n*/x86.cpp*) set -- -U__x86_64__ "$@";;\nesac\n'
    compiler.write_text(f'{refuses}exec g++ "$@"\n')
    compiler.chmod(0o755)
    variables = {"CXX": str(compiler), "CXXFLAGS": "-O0", "DIRECT_HIFIMAMBA_REQUIRE_KERNELS": "1"}
    result = build_extension(tmp_path / "sources", "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stderr
    (library,) = tmp_path.glob("sources/direct_hifimamba/ops/*.so")
    native = ctypes.CDLL(str(library))
    native.native_instruction_sets.restype = ctypes.c_char_p
    assert native.native_instruction_sets() == b"portable"


def test_nothing_is_written_beside_the_sources(tmp_path: Path) -> None:
    """By a compiler that writes empty files, into an absolute folder, as `pip install --editable` names one."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" ]; do [ "$1" = -o ] && : > "$2"; shift; done\n')
    compiler.chmod(0o755)
    options = ("--build-temp", str(tmp_path / "objects"), "--build-lib", str(tmp_path / "library"))
    result = build_extension(tmp_path / "sources", "build_ext", *options, CC=str(compiler), CXX=str(compiler))
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "objects").rglob("x86.o")) and list((tmp_path / "library").rglob("_native*"))
    assert not list((tmp_path / "sources").rglob("*.o"))


def test_metadata_are_valid_and_their_links_lead_somewhere(wheel: Path, distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    folder = f"direct_hifimamba-{__version__}"
    with zipfile.ZipFile(wheel) as archive:
        texts = [archive.read(f"{folder}.dist-info/METADATA")]
    with tarfile.open(sdist) as archive:
        texts.append(archive.extractfile(f"{folder}/PKG-INFO").read())
    for text in texts:
        metadata = Metadata.from_email(text, validate=True)
        assert metadata.project_urls
        assert metadata.description_content_type == "text/markdown"
        assert {"Typing :: Typed", "Programming Language :: Python :: 3.13"} <= set(metadata.classifiers)
        assert metadata.description.startswith("# direct_hifimamba")
        links = re.findall(r"\]\(([^)]*)\)", metadata.description)
        assert links
        assert all(link.startswith("https://") for link in links), links


def test_sdist_is_complete(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "tests/packaging_test.py"} <= names
    kernels = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("direct_hifimamba/ops/csrc/*.*")}
    assert kernels <= names


def test_installed_wheel_is_found_and_leaves_nothing_behind(python: Path, probe: Path, wheel: Path) -> None:
    environment = python.parents[1]
    before = installed_files(environment)
    pip(python, "install", "--no-deps", "--no-index", wheel)
    check_found(run(python, probe, "spawned", "worker"), environment)
    pip(python, "uninstall", "--yes", "direct-hifimamba")
    assert installed_files(environment) == before


def test_sdist_installs_where_no_kernels_can_be_compiled(python: Path, probe: Path, distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-cache-dir")
    run(*command, "--no-build-isolation", sdist, CXX="false")
    check_found(run(python, probe, "here"), python.parents[1])
    assert re.search("native +not available: .*not built", run(python, "-m", "direct_hifimamba.cli", "info").stdout)


def test_target_folder_on_the_path_is_found(tmp_path: Path, python: Path, probe: Path, wheel: Path) -> None:
    target = tmp_path / "target"
    pip(python, "install", "--no-deps", "--no-index", "--target", target, wheel)
    check_found(run(python, probe, "here", PYTHONPATH=str(target)), target)


def test_without_autoload_the_own_command_registers(python: Path, probe: Path, wheel: Path) -> None:
    pip(python, "install", "--no-deps", "--no-index", wheel)
    absent = "import importlib.util, torch; assert importlib.util.find_spec('direct.nn.hifimamba') is None"
    run(python, "-c", absent, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    variables = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PROBE_IMPORTS": "direct_hifimamba.cli"}
    check_found(run(python, probe, "spawned", **variables), python.parents[1])
    own = run(python.with_name("direct-hifimamba"), "train", "--help", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "usage: direct-hifimamba train" in own.stdout
