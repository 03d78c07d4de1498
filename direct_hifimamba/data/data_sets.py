"""What HiFi-MambaV2 was evaluated on: which files, slices, sizes and masks of which data set.

As far as the authors' training code tells. Their mask files are not public.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.sources import CalgaryCampinas, KSpaceFile, M4Raw, NiftiFile

MEASURED = "measured"
SIMULATED = "simulated from magnitude"

CENTRAL, INNER, ALL = "central", "inner", "all"

CENTER_FRACTIONS = {4: 0.08, 8: 0.04}
EQUISPACED = tuple(MaskOptions("FastMRIEquispaced", *item) for item in CENTER_FRACTIONS.items())
RANDOM = tuple(MaskOptions("FastMRIRandom", *item) for item in CENTER_FRACTIONS.items())
RADIAL = tuple(MaskOptions("Radial", acceleration) for acceleration in (16, 32))


@dataclass(frozen=True)
class DataSet:
    """A data set and how it was used.

    Attributes
    ----------
    reader : type
        Of its files.
    splits : Mapping[str, str]
        Name of a split, as ours is called, to the folder of the download. In fastMRI's, `{coils}` is `single` or
        `multi`.
    pattern : str
        Regular expression for the names of the files to use. A group `acquisition` is the kind of measurement.
    slices : str
        Rule for :func:`select_slices`.
    size : tuple of ints
        Height and width of magnitude images.
    masks : tuple of MaskOptions
        For evaluation.
    kspace_of_paper : str
        `measured` or `simulated from magnitude`.
    acquisition : str, optional
        Kind of measurement. None: the data set has only one.
    named_by_folder : bool
        Whether the files have the same name in a folder for each patient.
    centered : bool
        Whether the origin of the images is in the middle, as DIRECT's operators have it by default.
    """

    reader: type[KSpaceFile] | type[NiftiFile]
    splits: Mapping[str, str] = field(hash=False)
    pattern: str
    slices: str
    size: tuple[int, int]
    masks: tuple[MaskOptions, ...]
    kspace_of_paper: str = SIMULATED
    acquisition: str | None = None
    named_by_folder: bool = False
    centered: bool = True

    @property
    def is_measured(self) -> bool:
        """Whether there is measured k-space."""
        return issubclass(self.reader, KSpaceFile)

    @property
    def has_coil_variants(self) -> bool:
        """Whether the download has single-coil and multi-coil data in folders of their own."""
        return any("{coils}" in folder for folder in self.splits.values())

    def file_name(self, path: Path) -> str:
        """Name of the prepared file that belongs to a file of the download."""
        stem = re.sub(r"\.(h5|nii|nii\.gz)$", "", path.name)
        return f"{path.parent.name}_{stem}.h5" if self.named_by_folder else f"{stem}.h5"

    def acquisition_of(self, path: Path) -> str | None:
        """Kind of measurement of a file whose name fits the pattern."""
        if self.acquisition is None:
            return None
        match = re.fullmatch(self.pattern, path.name)
        if match and "acquisition" in match.groupdict():
            return match["acquisition"]
        with self.reader(path) as source:
            return source.acquisition if isinstance(source, KSpaceFile) else None


DATA_SETS = {
    "fastmri": DataSet(
        reader=KSpaceFile,
        splits={"train": "{coils}coil_train", "val": "{coils}coil_val"},
        pattern=r".+\.h5",
        slices=f"{CENTRAL}:20",
        size=(320, 320),
        masks=(*EQUISPACED, *RANDOM),
        acquisition="CORPDFS_FBK",
    ),
    "calgary-campinas": DataSet(
        reader=CalgaryCampinas,
        splits={"train": "Train", "val": "Val"},
        pattern=r".+\.h5",
        slices=f"{INNER}:30",
        size=(256, 256),
        masks=(*EQUISPACED, *RANDOM),
        centered=False,
    ),
    "acdc": DataSet(
        reader=NiftiFile,
        splits={"train": "training", "test": "testing"},
        pattern=r"patient\d+_frame\d+\.nii(\.gz)?",
        slices=ALL,
        size=(128, 128),
        masks=RADIAL,
    ),
    "prostate158": DataSet(
        reader=NiftiFile,
        splits={"train": "train", "test": "test"},
        pattern=r"t2\.nii(\.gz)?",
        slices=ALL,
        size=(224, 224),
        masks=RANDOM,
        named_by_folder=True,
    ),
    "m4raw": DataSet(
        reader=M4Raw,
        splits={"train": "multicoil_train", "val": "multicoil_val", "test": "multicoil_test"},
        pattern=r"\d+_(?P<acquisition>\w+?)\d\d\.h5",
        slices=ALL,
        size=(256, 256),
        masks=(*EQUISPACED, *RANDOM),
        kspace_of_paper=MEASURED,
        acquisition="T1",
    ),
}


def select_slices(rule: str, num_slices: int) -> range:
    """The slices of a volume that count.

    Parameters
    ----------
    rule : str
        `all`; `central:N` for the N in the middle; `inner:N` for all but the first N and the last N.
    num_slices : int

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    match = re.fullmatch(rf"{ALL}|({CENTRAL}|{INNER}):(\d+)", rule)
    if not match:
        raise ValueError(f"The rule for slices is {rule!r}; expected {ALL}, {CENTRAL}:N or {INNER}:N.")
    if rule == ALL:
        return range(num_slices)
    count = int(match[2])
    if match[1] == INNER:
        return range(num_slices)[count : max(count, num_slices - count)]
    start = max(0, num_slices - count) // 2
    return range(num_slices)[start : start + count]
