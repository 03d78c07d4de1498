"""The rooms of the package, see [tool.importlinter] in pyproject.toml."""

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_imports_run_downwards(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_imports(str(PYPROJECT), no_cache=True) == 0, capsys.readouterr().out
