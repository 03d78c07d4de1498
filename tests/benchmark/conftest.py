from pathlib import Path

import pytest

from tests.benchmark.small_benchmark import write_data, write_specification


@pytest.fixture
def small_specification(tmp_path: Path) -> Path:
    """The specification of a small benchmark, with its configurations and data."""
    write_data(tmp_path / "data")
    return write_specification(tmp_path)
