"""One measured slice that was undersampled by the scanner, reconstructed without a reference: a picture.

Run `python projects/measured/picture.py images.png`. It shows `under_sigpy_brain8_poisson`, a brain with 8 coils that
Poisson discs sampled 8 times too sparsely: zero-filled, compressed sensing where BART is installed, and weights in the
package. `make demo` ends with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scans import load_scan
from score import BART, ZERO_FILLED, Image, draw, reconstruct_pics

from direct_hifimamba.benchmark.run.classical import find_bart
from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.reconstruct import Reconstructor

SCAN = "under_sigpy_brain8_poisson"
WEIGHTS = "multicoil"
BART_WEIGHT = 0.01


def write_picture(path: Path, scan: str = SCAN) -> None:
    """Reconstruct the first slice of an undersampled scan, and draw the images side by side.

    Raises
    ------
    UnavailableError
        If the scan is neither in the folder nor can it be downloaded.
    """
    kspace = load_scan(scan)[:1]
    mask = (kspace != 0).any(axis=(0, 1))
    images: dict[str, Image] = {ZERO_FILLED: root_sum_of_squares(kspace[0])}
    if find_bart():
        (images[f"compressed sensing ({BART})"],) = reconstruct_pics(kspace[0], 6, [BART_WEIGHT])
    else:
        print("There is no program bart on the PATH; compressed sensing is left out.")
    images[f"HiFi-MambaV2, weights {WEIGHTS}"] = Reconstructor.from_pretrained(WEIGHTS)(kspace, mask)[0]
    height, width = np.shape(kspace)[-2:]
    draw(path, [images], size=(2.4, 2.4 * height / width + 0.2))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="PNG file")
    mpl.use("agg")
    write_picture(parser.parse_args().output)


if __name__ == "__main__":
    main()
