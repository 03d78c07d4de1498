"""Functions that the measurements share: interleaved timing, memory of one call, the machine, and the output."""

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

#: Least duration of a measurement in seconds.
SHORTEST = 0.5


def interleaved_seconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call in every round, after a warm-up round.

    A round measures all calls in turn, so that a disturbance of the machine affects all of them. A call is repeated for
    `SHORTEST` seconds and averaged, because the first repetition finds the caches filled by another call.
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
    """Return the peak resident size of this process, in MB of 10^6 bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def extra_megabytes(call: Callable[[], object]) -> float:
    """Return by how many MB of 10^6 bytes one call raises the peak resident size of this (fresh) process."""
    extra = extra_resident_bytes(call)
    if extra is None:
        raise RuntimeError("The memory of a call is measured on Linux only.")
    return extra / 1e6


def in_fresh_process(script: str, arguments: Sequence[str], threads: int) -> Any:
    """Run `script` in a process of its own and return the JSON that it prints as its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(
        [sys.executable, script, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Return processor, load and versions."""

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
    """Return a Markdown table; numbers have three significant digits."""

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
