"""The parts of the package, see [tool.importlinter] in pyproject.toml and docs/architecture.md."""

import re
import tomllib
from itertools import chain, combinations
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"


def test_imports_run_downwards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # It would disable the loggers that exist, in the tests that follow too.
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    assert lint_imports(str(PYPROJECT), no_cache=True) == 0, capsys.readouterr().out


def test_the_diagram_has_every_part_and_import() -> None:
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL | re.M)
    parts = re.findall(r'^ +(\w+)\["', diagram, re.MULTILINE)
    contract = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [layer.split(" | ") for layer in contract["layers"]]
    assert sorted(parts) == sorted(chain.from_iterable(layers))

    arrows = set(re.findall(r"^ +(\w+) -->(?:\|.*?\|)? (\w+)$", diagram, re.MULTILINE))
    downwards = {(a, b) for upper, lower in combinations(layers, 2) for a in upper for b in lower}
    assert arrows and arrows <= downwards

    graph = grimp.build_graph("direct_hifimamba", exclude_type_checking_imports=True, cache_dir=None)
    imports = {
        (importer.split(".")[1], imported.split(".")[1])
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if importer.count(".") and imported.count(".")
    }
    reached = arrows | {(part, part) for part in parts} | set(re.findall(r"(\w+) -\. .* \.-> (\w+)", diagram))
    for _ in parts:
        reached |= {(a, d) for a, b in reached for c, d in arrows if b == c}
    assert imports <= reached, "docs/architecture.md has no arrows for these imports"
