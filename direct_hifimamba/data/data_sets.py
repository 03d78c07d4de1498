"""Data sets on which HiFi-MambaV2 was evaluated: their files, slices, sizes and masks.

The values follow the authors' training code. Their mask files are not public.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.sources import CalgaryCampinas, KSpaceFile, NiftiFile, RawFile

MEASURED = "measured"
SIMULATED = "simulated from magnitude"

CENTRAL, INNER, ALL = "central", "inner", "all"

CENTER_FRACTIONS = {4: 0.08, 8: 0.04}
EQUISPACED = tuple(MaskOptions("FastMRIEquispaced", *item) for item in CENTER_FRACTIONS.items())
RANDOM = tuple(MaskOptions("FastMRIRandom", *item) for item in CENTER_FRACTIONS.items())
RADIAL = tuple(MaskOptions("Radial", acceleration) for acceleration in (16, 32))


@dataclass(frozen=True)
class DataSet:
    """Data set, and the protocol of the paper for it.

    Attributes
    ----------
    reader : type
        Class that reads its files.
    splits : Mapping[str, str]
        Folder of the download for the name of each split. In fastMRI's folders, `{coils}` is `single` or `multi`.
    pattern : str
        Regular expression for the names of the files to use. A group `acquisition` is the kind of measurement, and a
        group `subject` is the person.
    size : tuple of ints
        Height and width of magnitude images.
    slices : str
        Rule for :func:`select_slices`.
    masks : tuple of MaskOptions
        Masks for evaluation.
    kspace_of_paper : str
        `measured` or `simulated from magnitude`.
    acquisition : str, optional
        Kind of measurement. None: the data set has only one.
    named_by_folder : bool
        Whether the files have the same name in a folder for each patient.
    lists : Mapping[str, str]
        File name of the table of subjects of a split, beside its folder. These subjects are in no other split.
    centered : bool
        Whether the origin of the images is in the middle, the default of DIRECT's operators.
    """

    reader: type[KSpaceFile] | type[NiftiFile]
    splits: Mapping[str, str] = field(hash=False)
    pattern: str
    size: tuple[int, int]
    slices: str = ALL
    masks: tuple[MaskOptions, ...] = (*EQUISPACED, *RANDOM)
    kspace_of_paper: str = SIMULATED
    acquisition: str | None = None
    named_by_folder: bool = False
    lists: Mapping[str, str] = field(default_factory=dict, hash=False)
    centered: bool = True

    @property
    def is_measured(self) -> bool:
        """Whether the data set has measured k-space."""
        return issubclass(self.reader, KSpaceFile)

    @property
    def has_coil_variants(self) -> bool:
        """Whether the download has separate folders with single-coil and multi-coil data."""
        return any("{coils}" in folder for folder in self.splits.values())

    def file_name(self, path: Path) -> str:
        """Return the name of the prepared file for a file of the download."""
        return f"{path.parent.name}_{_stem(path)}.h5" if self.named_by_folder else f"{_stem(path)}.h5"

    def subject_of(self, path: Path) -> str:
        """Return the subject of a file: its folder, number in its name, attribute `patient_id`, or else its name.

        Raises
        ------
        SourceError
            If the file has to be read and cannot be read.
        """
        if self.named_by_folder:
            return path.parent.name
        match = re.fullmatch(self.pattern, path.name)
        if match and match.groupdict().get("subject"):
            return match["subject"]
        if not self.is_measured or issubclass(self.reader, RawFile):  # which names nobody
            return _stem(path)
        with self.reader(path) as source:
            return (isinstance(source, KSpaceFile) and source.subject) or _stem(path)

    def acquisition_of(self, path: Path) -> str | None:
        """Return the kind of measurement of a file whose name matches the pattern."""
        if self.acquisition is None:
            return None
        match = re.fullmatch(self.pattern, path.name)
        if match and "acquisition" in match.groupdict():
            return match["acquisition"]
        with self.reader(path) as source:
            return source.acquisition if isinstance(source, KSpaceFile) else None


def _stem(path: Path) -> str:
    return re.sub(r"\.(h5|nii|nii\.gz)$", "", path.name)


def subject_from_name(name: str) -> str:
    """Return the subject in the name of a file of any data set, such as `sub-01` or `patient7`, or else the name."""
    match = re.search(r"sub-[A-Za-z0-9]+|(patient|subject|subj|case|volunteer)[-_ ]?\d+", name, re.IGNORECASE)
    return match[0] if match else name


def listed_subjects(table: Path) -> set[str]:
    """Return the subjects of a table of Prostate158: the folders of the paths in its columns, or its column ID.

    Raises
    ------
    ValueError
        If it has neither.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    subjects = {
        PurePosixPath(cell).parent.name
        for row in rows
        for cell in row.values()
        if isinstance(cell, str) and "/" in cell
    }
    if not subjects:
        subjects = {row["ID"].strip().zfill(3) for row in rows if row.get("ID")}
    if rows and not subjects:
        raise ValueError(f"{table} names no file such as train/024/t2.nii.gz in any column; download it again.")
    return subjects


DATA_SETS = {
    "fastmri": DataSet(
        reader=KSpaceFile,
        splits={"train": "{coils}coil_train", "val": "{coils}coil_val"},
        pattern=r".+\.h5",
        slices=f"{CENTRAL}:20",
        size=(320, 320),
        acquisition="CORPDFS_FBK",
    ),
    "calgary-campinas": DataSet(
        reader=CalgaryCampinas,
        splits={"train": "Train", "val": "Val"},
        pattern=r"(?:(?P<subject>e\d+)s\d+_)?.+\.h5",
        slices=f"{INNER}:30",
        size=(256, 256),
        centered=False,
    ),
    "acdc": DataSet(
        reader=NiftiFile,
        splits={"train": "training", "test": "testing"},
        pattern=r"(?P<subject>patient\d+)_frame\d+\.nii(\.gz)?",
        size=(128, 128),
        masks=RADIAL,
    ),
    "prostate158": DataSet(
        reader=NiftiFile,
        splits={"train": "train", "val": "train", "test": "test"},
        lists={"val": "valid.csv"},
        pattern=r"t2\.nii(\.gz)?",
        size=(224, 224),
        masks=RANDOM,
        named_by_folder=True,
    ),
    "m4raw": DataSet(
        reader=KSpaceFile,
        splits={"train": "multicoil_train", "val": "multicoil_val", "test": "multicoil_test"},
        pattern=r"(?P<subject>\d+)_(?P<acquisition>\w+?)\d\d\.h5",
        size=(256, 256),
        kspace_of_paper=MEASURED,
        acquisition="T1",
    ),
    "raw": DataSet(
        reader=RawFile,
        splits={"train": "train", "val": "val", "test": "test"},
        pattern=r".+(?<!\.hdr)",  # BART's files come in pairs
        size=(256, 256),
        kspace_of_paper=MEASURED,
    ),
}


def select_slices(rule: str, num_slices: int) -> range:
    """Return the indices of the slices that a rule selects.

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
