"""Which optional packages are installed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra in pyproject.toml that are not installed."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = [re.split("[<>=]", requirement)[0] for requirement in project["optional-dependencies"][extra]]
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return [name for name in names if name not in installed]
