from __future__ import annotations

import json
import platform
import subprocess
import sys
from typing import Any

import pytest

from direct_hifimamba import hifimamba_engine
from tests.hifimamba_engine_test import build_engine

COUNT_FAULTS = """
import json, resource, torch
from direct_hifimamba.allocation import keep_freed_memory

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


def run(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[bool, int, int]:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    process = subprocess.run([sys.executable, "-c", COUNT_FAULTS], stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(process.stdout))


@glibc_only
def test_memory_that_was_freed_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, faults_before, faults_after = run(monkeypatch)
    assert kept
    assert faults_after < faults_before / 2


@glibc_only
def test_what_the_user_has_set_up_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, faults_before, faults_after = run(monkeypatch, MALLOC_MMAP_THRESHOLD_="1000000")
    assert not kept
    assert faults_after > faults_before / 2


@pytest.mark.parametrize(("device", "expected"), [("cpu", 1), ("meta", 0)])
def test_the_engine_keeps_memory_on_a_cpu(monkeypatch: pytest.MonkeyPatch, device: str, expected: int) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(hifimamba_engine, "keep_freed_memory", lambda: calls.append(None))
    engine = build_engine()
    calls.clear()
    type(engine)(engine.cfg, engine.model, device, None, None)
    assert len(calls) == expected
