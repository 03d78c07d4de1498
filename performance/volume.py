"""Time and memory of `direct-hifimamba reconstruct` for a whole volume.

Run `python performance/volume.py`. K-space of 40 slices and 16 coils of 640 x 368, 4 times undersampled, is written to
a file and reconstructed with weights in the package by a process of its own. It is ended after `--finish` slices, as
the others would take the same time and memory.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import machine
from numpy.typing import NDArray

from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample

COILS, SHAPE = 16, (640, 368)


def slices(count: int) -> Iterator[NDArray[np.complex64]]:
    """Yield slices of random tissues; they differ in their scale alone, as drawing others would take long."""
    options = SampleOptions(num_coils=(COILS, COILS), shape=SHAPE, snr=(50, 50), noiseless_fraction=0)
    kspace = draw_sample(0, options).kspace
    for index in range(count):
        yield kspace * np.float32(1 + index / count)


def columns() -> NDArray[np.bool_]:
    """Return a mask of every fourth column and a centre of 8 %."""
    width = SHAPE[1]
    mask = np.arange(width) % 4 == 1
    mask[width // 2 - round(0.04 * width) : width // 2 + round(0.04 * width)] = True
    return mask


def main() -> None:
    """Print a line of a Markdown table for each number of slices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[40])
    parser.add_argument("--finish", type=int, default=3)
    args = parser.parse_args()
    if min(args.slices) < 3 or args.finish < 2:
        parser.error("expected at least 3 --slices, and at least 2 to --finish")
    print(json.dumps(machine()))
    print("| slices | k-space, GB | before the first slice, s | per slice, s | peak memory, GB |")
    print("|---|---|---|---|---|")
    for count in args.slices:
        with TemporaryDirectory() as folder:
            source = Path(folder, "volume.h5")
            write_volume(source, slices(count), {}, columns())
            words = ["reconstruct", "multicoil", str(source), f"{folder}/images"]
            start = time.time()
            process = subprocess.Popen(
                [sys.executable, "-m", "direct_hifimamba.cli", *words], stdout=subprocess.DEVNULL
            )
            finished: list[Path] = []
            while len(finished) < min(args.finish, count - 1):
                time.sleep(0.2)
                if process.poll() is not None:
                    raise RuntimeError(f"reconstruct ended with status {process.returncode}.")
                finished = sorted(Path(folder, ".images.partial").glob("[0-9]*.npz"))
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024 / 1e9
            process.kill()
            process.wait()
            times = [path.stat().st_mtime for path in finished]
        each = (times[-1] - times[0]) / (len(times) - 1)
        size = count * COILS * SHAPE[0] * SHAPE[1] * 8 / 1e9
        print(f"| {count} | {size:.2f} | {times[0] - start - each:.0f} | {each:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
