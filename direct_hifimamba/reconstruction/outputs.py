"""The files that `direct-hifimamba reconstruct` writes."""

from collections.abc import Sequence
from pathlib import Path

from direct_hifimamba.data.formats.images import SUFFIXES, find_format, import_writer
from direct_hifimamba.files import PARTIAL_SUFFIX, refuse_to_replace
from direct_hifimamba.reconstruction.slices import NOISE, RESIDUAL, SPREAD, refuse_existing

DEFAULT_FORMATS = ("hdf5", "nifti", "png")
COMPLEX_FORMATS = ("hdf5", "cfl")
MAP_FORMATS = {NOISE: ("hdf5", "nifti", "cfl"), SPREAD: ("hdf5", "nifti", "cfl"), RESIDUAL: ("hdf5", "cfl")}
"""Formats of maps; the residual is no image. The contact sheet shows all of them."""
PHASE = "phase"
PARTIAL = "partial"


def output_paths(
    output: Path,
    source: Path,
    formats: Sequence[str] | None = None,
    phase: bool = False,
    maps: Sequence[str] = (),
    others: Sequence[Path] = (),
) -> dict[str, Path]:
    """Return the files to write by their formats, and the folder of an interrupted run.

    No file exists, unless it was written after that run had begun.

    Parameters
    ----------
    output : Path
        A folder, for files of the name of the input; or a path, without or with the suffix of a format.
    source : Path
        The input.
    formats : sequence of str, optional
        Names in `images.SUFFIXES`. Default: the one of which `output` has the suffix, or `DEFAULT_FORMATS`.
    phase : bool
        Whether the phase is written as well, in NIfTI.
    maps : sequence of str
        Names of maps that are written as well, in those of the formats that are in `MAP_FORMATS`.
    others : sequence of Path
        More files that are read and must not be replaced.

    Returns
    -------
    dict
        Keys are the formats, `PHASE` if it is asked for, `<format>:<map>`, and `PARTIAL`.

    Raises
    ------
    FileExistsError
        If a file exists, one that is read among them.
    FileNotFoundError
        If the folder is missing.
    ImportError
        If a package that writes a format is missing.
    """
    named = find_format(output)
    if output.is_dir() and named is None:
        stem = output / source.stem
    else:
        stem = output if named is None else output.with_name(output.name.removesuffix(SUFFIXES[named]))
        formats = formats or (named and (named,))
    if not stem.parent.is_dir():
        raise FileNotFoundError(f"The folder {stem.parent} is missing; make it first.")
    chosen = [name for name in SUFFIXES if name in (formats or DEFAULT_FORMATS)]
    for name in [*chosen, "nifti"] if phase else chosen:
        import_writer(name)
    paths = {name: stem.with_name(stem.name + SUFFIXES[name]) for name in chosen}
    if phase:
        paths = {PHASE: stem.with_name(f"{stem.name}_phase{SUFFIXES['nifti']}")} | paths
    for name in maps:
        suffixes = {form: SUFFIXES[form] for form in chosen if form in MAP_FORMATS[name]} or {"hdf5": SUFFIXES["hdf5"]}
        paths |= {f"{form}:{name}": stem.with_name(f"{stem.name}_{name}{suffix}") for form, suffix in suffixes.items()}
    partial = stem.with_name(f".{stem.name}{PARTIAL_SUFFIX}")
    headers = [path.with_suffix(".hdr") for path in paths.values() if path.suffix == SUFFIXES["cfl"]]
    for path in (*paths.values(), *headers):
        refuse_to_replace(path, [source, *others])
    refuse_existing([*paths.values(), *headers], partial)
    return paths | {PARTIAL: partial}
