import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from tests.extras import missing_packages

TESTS = Path(__file__).parent
#: Tests that need the extras `benchmark` and `data`. All others are marked `core`.
NEED_EXTRAS = [
    TESTS / name
    for name in (
        "benchmark",
        "data",
        "documents_test.py",
        "projects",
        "reconstruction",
        "training/direct_command_test.py",
    )
]
MISSING = [*missing_packages("benchmark"), *missing_packages("data")]

collect_ignore = NEED_EXTRAS if MISSING else []

# Programs that tests start, such as BART and our own commands: as many tests run side by side as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(optionalhook=True)  # there is no such hook without xdist
def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than there are cores, because tests of Slurm and of other commands wait for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_report_header() -> str | None:
    names = ", ".join(str(path.relative_to(TESTS)) for path in collect_ignore)
    return f"without extras ({', '.join(MISSING)} not installed), so not collected: {names}" if MISSING else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.path.is_relative_to(path) for path in NEED_EXTRAS):
            item.add_marker("core")
    # Files with slow tests first: with xdist, the last files should be short, so that all processes end together.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Keep what has been imported out of the garbage collections that DIRECT does at every slice."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def group_norm_transforms(request: pytest.FixtureRequest) -> None:
    """Skip a test of bottlenecks where PyTorch raises in transforms of a group norm of channels-last images."""
    bottleneck = request.node.name.startswith("test_derivatives_of_the_network") or "bottleneck" in request.node.name
    if bottleneck and Version(torch.__version__) < Version("2.12"):
        pytest.skip(f"PyTorch {torch.__version__} raises in transforms of a group norm of channels-last images")


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Seed PyTorch and compute on one thread: the order of floating-point sums is then the same in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
