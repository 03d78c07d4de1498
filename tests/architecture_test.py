"""The rooms of the package, see [tool.importlinter] in pyproject.toml."""

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_imports_run_downwards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # It would disable the loggers that exist, in the tests that follow too.
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    assert lint_imports(str(PYPROJECT), no_cache=True) == 0, capsys.readouterr().out
