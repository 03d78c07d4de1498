from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from direct_hifimamba.nn.hifimamba import hifimamba_engine
from direct_hifimamba.training import allocation
from tests.nn.hifimamba.hifimamba_engine_test import build_engine

COUNT_FAULTS = """
import json, resource, torch
from direct_hifimamba.training.allocation import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(10, 2**20)  # 40 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
kept = keep_freed_memory()
print(json.dumps([kept, plain, faults()]))
"""

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@pytest.fixture(autouse=True)
def _nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


def count_faults() -> tuple[bool, int, int]:
    """Whether memory is kept, page faults before and after."""
    process = subprocess.run([sys.executable, "-c", COUNT_FAULTS], stdout=subprocess.PIPE, text=True, check=True)
    kept, before, after = json.loads(process.stdout)
    return kept, before, after


@glibc_only
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    kept, before, after = count_faults()
    if not kept:
        pytest.skip("this glibc allows no array above 32 MB in its heap")
    assert after < before / 2


@glibc_only
def test_what_the_user_has_set_up_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    kept, before, after = count_faults()
    assert not kept
    assert after > before / 2


@pytest.mark.parametrize(
    ("refused", "tunables", "calls"),
    [
        (set(), "", [-3, -1]),
        (set(), "glibc.rtld.nns=2", [-3, -1]),
        (set(), "glibc.malloc.arena_max=1", []),
        ({-3}, "", [-3]),  # and the threshold that glibc adapts is left to it
    ],
)
def test_all_or_nothing_is_set(
    monkeypatch: pytest.MonkeyPatch, refused: set[int], tunables: str, calls: list[int]
) -> None:
    made: list[int] = []

    def mallopt(option: int, value: int) -> int:
        made.append(option)
        return option not in refused

    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert allocation.keep_freed_memory() == (len(calls) == 2)
    assert made == calls


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked for"))
    assert not allocation.keep_freed_memory()


@pytest.mark.parametrize(("device", "expected"), [("cpu", 1), ("meta", 0)])
def test_the_engine_keeps_memory_on_a_cpu(monkeypatch: pytest.MonkeyPatch, device: str, expected: int) -> None:
    calls: list[None] = []
    monkeypatch.setattr(hifimamba_engine, "keep_freed_memory", lambda: calls.append(None))
    engine = build_engine()
    calls.clear()
    type(engine)(engine.cfg, engine.model, device, None, None)
    assert len(calls) == expected
