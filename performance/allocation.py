"""Measure forward passes of HiFi-MambaV2 at full size on a CPU, with and without retaining freed memory in glibc.

Run `python performance/allocation.py`. For every image size, two processes are measured in turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from common import interleaved_seconds, machine, markdown_table, peak_megabytes, write_results
from network import make_call

#: Environment variables that make glibc retain freed memory, and reuse it for tensors of up to 2 GiB.
RETAIN = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def work(size: int) -> None:
    """Make a call for every input line, and print this process's peak resident size in MB."""
    call = make_call("forward", size)
    for _ in sys.stdin:
        call()
        print(peak_megabytes(), flush=True)


class Worker:
    """Process that makes calls.

    Parameters
    ----------
    size, threads : int
        Pixels of the image along each axis; threads of PyTorch.
    retain : bool
        Whether the process retains freed memory.
    """

    def __init__(self, size: int, threads: int, retain: bool) -> None:
        self.peak = 0.0
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(size)],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)} | (RETAIN if retain else {}),
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
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 320, 640], help="image sizes")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return

    rows, records = [], []
    for size in args.sizes:
        plain, retained = workers = [Worker(size, args.threads, retain) for retain in (False, True)]
        try:
            seconds = interleaved_seconds({"plain": plain, "retained": retained}, args.rounds)
        finally:
            for worker in workers:
                worker.end()
        before, after = (statistics.median(values) for values in seconds.values())
        rows.append([f"{size} x {size}", before, after, after / before, f"{plain.peak:.0f}", f"{retained.peak:.0f}"])
        records.append({"size": size, "seconds": seconds, "peak MB": [plain.peak, retained.peak]})
    header = ["image", "plain, s", "retained, s", "ratio", "plain, MB", "retained, MB"]
    head = f"{args.threads} thread(s), {args.rounds} rounds, medians."
    circumstances = machine() | {"libc": " ".join(platform.libc_ver())}
    results = {"machine": circumstances, "threads": args.threads, "records": records}
    write_results(args.output, "allocation", results, f"{head}\n\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
