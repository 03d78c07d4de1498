"""What the benchmarks share: interleaved timing, memory of one call, the machine, and their output."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from direct_hifimamba.benchmark.run.memory import extra_resident_bytes

#: Seconds that a measurement takes at least.
SHORTEST = 0.5


def interleaved_seconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in every round, after one round that is not counted.

    All calls of a round follow one another, so that a disturbance of the machine meets all of them. A call is repeated
    until `SHORTEST` has gone by, and the mean counts: a short one should not pay for the caches that others emptied.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with tqdm(total=(rounds + 1) * len(calls), unit="call", leave=False) as progress:
        for round_index in range(rounds + 1):
            for name, call in calls.items():
                progress.set_description(name)
                count, elapsed, start = 0, 0.0, time.perf_counter()
                while elapsed < SHORTEST:
                    call()
                    count, elapsed = count + 1, time.perf_counter() - start
                if round_index:
                    seconds[name].append(elapsed / count)
                progress.update()
    return seconds


def peak_megabytes() -> float:
    """Largest resident size of this process so far, in MB of 10^6 bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def extra_megabytes(call: Callable[[], object]) -> float:
    """By how many MB of 10^6 bytes one call raises the resident size of this process at most; for a fresh process."""
    extra = extra_resident_bytes(call)
    if extra is None:
        raise RuntimeError("The memory of a call is measured on Linux only.")
    return extra / 1e6


def in_fresh_process(script: str, arguments: Sequence[str], threads: int) -> Any:
    """JSON that `script`, run with `arguments` in a process of its own, prints as its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(
        [sys.executable, script, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Processor, load and versions."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    cpu_info = Path("/proc/cpuinfo")
    models = [line for line in cpu_info.read_text().splitlines() if "model name" in line] if cpu_info.exists() else []
    return {
        "processor": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: installed(name) for name in ("direct-hifimamba", "direct-recon", "torch", "mambapy", "mamba-ssm")},
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers with three significant digits."""

    def text(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(text, line)) + " |" for line in lines)


def write_results(folder: Path, name: str, results: Mapping[str, Any], markdown: str) -> None:
    """Write `<name>.json` and `<name>.md`, and print the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown + "\n")
    print(markdown)
