"""Forward passes of HiFi-MambaV2 at full size, on a CPU, with glibc's own policy and with freed memory kept.

Run `python performance/allocation.py --output docs/benchmarks`. Two processes per image size take turns.
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

from direct_hifimamba.training.allocation import keep_freed_memory


def work(size: int, keep: bool) -> None:
    """Make a call for every line that comes in, and answer with this process's largest resident size in MB."""
    if keep and not keep_freed_memory():
        raise RuntimeError("Freed memory cannot be kept here; see direct_hifimamba.training.allocation.")
    call = make_call("forward", size)
    for _ in sys.stdin:
        call()
        print(peak_megabytes(), flush=True)


class Worker:
    """A process that makes calls.

    Parameters
    ----------
    size, threads : int
        Of the image; of PyTorch.
    keep : bool
        Whether it keeps freed memory.
    """

    def __init__(self, size: int, threads: int, keep: bool) -> None:
        self.peak = 0.0
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(size), *(["--keep"] if keep else [])],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> None:
        """Make a call and wait for its end."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        print(file=stdin, flush=True)
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"The process that makes the calls ended with status {self.process.wait()}.")
        self.peak = float(answer)

    def end(self) -> None:
        """End the process, so that its memory is free."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Measure and write `allocation.json` and `allocation.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 320, 640], help="image sizes")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.keep)
        return

    rows, records = [], []
    for size in args.sizes:
        plain, kept = workers = Worker(size, args.threads, keep=False), Worker(size, args.threads, keep=True)
        try:
            seconds = interleaved_seconds({"plain": plain, "kept": kept}, args.rounds)
        finally:
            for worker in workers:
                worker.end()
        before, after = (statistics.median(values) for values in seconds.values())
        rows.append([f"{size} x {size}", before, after, after / before, f"{plain.peak:.0f}", f"{kept.peak:.0f}"])
        records.append({"size": size, "seconds": seconds, "peak MB": [plain.peak, kept.peak]})
    header = ["image", "plain, s", "kept, s", "ratio", "plain, MB", "kept, MB"]
    head = f"{args.threads} thread(s), {args.rounds} rounds, medians."
    circumstances = machine() | {"libc": " ".join(platform.libc_ver())}
    results = {"machine": circumstances, "threads": args.threads, "records": records}
    write_results(args.output, "allocation", results, f"{head}\n\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
