import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import direct_hifimamba.nn
from direct_hifimamba import plugin

ROOT = Path(__file__).parents[1]
OPTIONAL = ("mamba_ssm", "matplotlib", "nibabel", "nilearn", "triton")


def run_python(code: str, *options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that finds modules in `cwd`."""
    path = f"import sys; sys.path.insert(0, {str(cwd)!r})\n"
    command = [sys.executable, "-W", "error", *options, "-c", path + code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_registers_once_and_last() -> None:
    code = (
        "import direct_hifimamba_hook as hook, direct_hifimamba\n"
        "from direct_hifimamba.plugin import AliasFinder, register\n"
        "hook.register(); register()\n"
        "assert [isinstance(finder, AliasFinder) for finder in sys.meta_path][-2:] == [False, True]"
    )
    result = run_python(code, "-I", "-S")
    assert result.returncode == 0, result.stderr


def test_hook_needs_the_standard_library_only() -> None:
    code = (
        "import direct_hifimamba_hook as hook; hook.register()\n"
        "own = {'__main__', 'direct_hifimamba', 'direct_hifimamba_hook'}\n"
        "assert {name.partition('.')[0] for name in sys.modules} - own <= sys.stdlib_module_names\n"
        "assert 'direct_hifimamba' in sys.modules"
    )
    result = run_python(code, "-I", "-S")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("package", [None, "not python", "import no_such_package", "raise RuntimeError('broken')"])
def test_hook_survives_a_broken_package(tmp_path: Path, package: str | None) -> None:
    shutil.copy(ROOT / "direct_hifimamba_hook.py", tmp_path)
    if package is not None:
        (tmp_path / "direct_hifimamba.py").write_text(package)
    result = run_python("import direct_hifimamba_hook as hook; hook.register()", "-I", "-S", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "DIRECT will not find HiFi-MambaV2" in result.stderr


@pytest.mark.parametrize("name", ["config", "hifimamba", "hifimamba_engine", "reference"])
def test_a_module_is_its_original(name: str) -> None:
    original = importlib.import_module(f"direct_hifimamba.nn.hifimamba.{name}")
    assert importlib.import_module(f"direct.nn.hifimamba.{name}") is original
    assert original.__name__ == original.__spec__.name == f"direct_hifimamba.nn.hifimamba.{name}"


def test_a_package_offers_names_but_no_path() -> None:
    original = importlib.import_module("direct_hifimamba.nn.hifimamba")
    alias = importlib.import_module("direct.nn.hifimamba")
    assert alias.__path__ == []
    assert alias.config is original.config


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of models that `direct_hifimamba.nn` has in addition; what the test imports is forgotten after it."""
    monkeypatch.setattr(direct_hifimamba.nn, "__path__", [*direct_hifimamba.nn.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before:
        if name.startswith(("direct.nn.", "direct_hifimamba.nn.")):
            del sys.modules[name]


def test_another_model_is_a_folder_and_nothing_else(models: Path) -> None:
    (models / "another").mkdir()
    for name in ("__init__", "another", "config", "another_engine"):
        (models / "another" / f"{name}.py").write_text(f"name = {name!r}")
    for name in ("another", "config", "another_engine"):
        module = importlib.import_module(f"direct.nn.another.{name}")
        assert module is importlib.import_module(f"direct_hifimamba.nn.another.{name}")
        assert module.name == name


def test_a_model_of_direct_is_not_mixed_with_ours(models: Path) -> None:
    (models / "unet").mkdir()
    for name in ("__init__", "unet_2d", "no_module_of_direct"):
        (models / "unet" / f"{name}.py").write_text("")
    assert "direct_hifimamba" not in str(importlib.import_module("direct.nn.unet.unet_2d").__file__)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("direct.nn.unet.no_module_of_direct")


@pytest.mark.parametrize(
    "name",
    [
        *("direct", "direct.nn", "direct.nn.unet", "direct.nn.layers", "direct.nn.layers.patch"),
        *("direct.nn.hifimamba_hook", "direct_hifimamba", "hifimamba", "torch.nn"),
    ],
)
def test_other_names_are_not_answered(name: str) -> None:
    assert plugin.AliasFinder().find_spec(name) is None


@pytest.mark.parametrize("name", ["hifimamba.no_such_module", "no_such_model", "no_such_model.config"])
def test_a_module_that_is_not_there_is_missed_under_its_alias(name: str) -> None:
    alias = f"direct.nn.{name}"
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(alias)
    assert alias.startswith(str(error.value.name))


@pytest.mark.parametrize(
    ("source", "cause"),
    [("import no_such_package", "no_such_package"), ("import math; math.no_such_name", "no_such_name")],
)
def test_direct_tells_why_a_module_cannot_be_imported(models: Path, source: str, cause: str) -> None:
    from direct.environment import load_model_from_name

    (models / "broken").mkdir()
    (models / "broken" / "__init__.py").write_text("")
    (models / "broken" / "broken.py").write_text(source)
    with pytest.raises(ImportError, match=rf"direct\.nn\.broken\.broken .*{cause}"):  # not SystemExit
        load_model_from_name("broken.broken.Model")


@pytest.mark.parametrize("name", direct_hifimamba.__all__)
def test_public_names_resolve(name: str) -> None:
    assert name in dir(direct_hifimamba)
    assert not isinstance(getattr(direct_hifimamba, name), ModuleType)


def test_unknown_names_do_not_resolve() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = direct_hifimamba.no_such_name


@pytest.mark.slow
def test_the_package_does_without_torch_and_the_model_without_extras() -> None:
    code = (
        "import direct_hifimamba\n"
        "assert not {'torch', 'direct', 'numpy'} & set(sys.modules)\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL}))  # importing one of them now raises ImportError\n"
        "from direct_hifimamba import *"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
