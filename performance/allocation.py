"""Measure HiFi-MambaV2 at full size on a CPU with other settings of glibc's memory allocation.

Run `python performance/allocation.py`. For every image size, one process per setting is measured in turn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from common import interleaved_seconds, machine, markdown_table, peak_megabytes, write_results
from network import KINDS, make_call

#: Environment variables that make glibc retain freed memory, and reuse it for tensors of up to 2 GiB.
RETAIN = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
#: Environment variable that makes glibc (2.35 or newer) ask Linux for pages of 2 MB.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SETTINGS: dict[str, dict[str, str]] = {"plain": {}, "retained": RETAIN, "retained, huge pages": RETAIN | HUGE_PAGES}


def work(kind: str, size: int) -> None:
    """Make a call for every input line, and print this process's peak resident size in MB."""
    call = make_call(kind, size)
    for _ in sys.stdin:
        call()
        print(peak_megabytes(), flush=True)


class Worker:
    """Process that makes calls.

    Parameters
    ----------
    kind : str
        Kind of call, as in `network.py`.
    size, threads : int
        Pixels of the image along each axis; threads of PyTorch.
    environment : dict
        Environment variables of the process, beside those of this one.
    """

    def __init__(self, kind: str, size: int, threads: int, environment: dict[str, str]) -> None:
        self.peak = 0.0
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", kind, str(size)],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> None:
        """Make a call and wait until it has finished."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        print(file=stdin, flush=True)
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"The process that makes the calls ended with status {self.process.wait()}.")
        self.peak = float(answer)

    def end(self) -> None:
        """End the process, which frees its memory."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Measure and write `allocation.json` and `allocation.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 320], help="image sizes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["forward", "training step"], help="what to call")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker[0], int(args.worker[1]))
        return

    rows, records = [], []
    for kind, size in itertools.product(args.kinds, args.sizes):
        workers = {name: Worker(kind, size, args.threads, environment) for name, environment in SETTINGS.items()}
        try:
            seconds = interleaved_seconds(workers, args.rounds)
        finally:
            for worker in workers.values():
                worker.end()
        plain, *others = (statistics.median(values) for values in seconds.values())
        peaks = {name: worker.peak for name, worker in workers.items()}
        rows.append([f"{size} x {size}", kind, plain, *(other / plain for other in others)])
        rows[-1] += [f"{peak:.0f}" for peak in peaks.values()]
        records.append({"size": size, "kind": kind, "seconds": seconds, "peak MB": peaks})
    names = list(SETTINGS)
    ratios, memory = [f"{name}, ratio" for name in names[1:]], [f"{name}, MB" for name in names]
    header = ["image", "call", "plain, s", *ratios, *memory]
    head = f"{args.threads} thread(s), {args.rounds} rounds, medians."
    circumstances = machine() | {"libc": " ".join(platform.libc_ver())}
    results = {"machine": circumstances, "threads": args.threads, "records": records}
    write_results(args.output, "allocation", results, f"{head}\n\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
