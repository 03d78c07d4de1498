"""The formats of raw data, recognised by what a file holds."""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from direct_hifimamba.data.formats import bart, calgary_campinas, hdf5, ismrmrd, matlab, numpy_files, twix
from direct_hifimamba.data.formats.raw_data import Format, MissingArrayError, RawData

FORMATS: tuple[Format, ...] = (
    ismrmrd.FORMAT,
    matlab.FORMAT,
    calgary_campinas.FORMAT,
    hdf5.FORMAT,
    numpy_files.FORMAT,
    twix.FORMAT,
    bart.FORMAT,
)
"""The first one that matches reads a file."""

_BRUKER = "acqp", "method"
"""Files in the folder of a scan of Bruker ParaVision."""


def read(path: Path, axes: Sequence[str] | None = None, variable: str | None = None) -> RawData:
    """Read a file of raw data.

    Parameters
    ----------
    path : Path
    axes : sequence of str, optional
        What the stored axes are, of `raw_data.AXES`, where the format does not say it.
    variable : str, optional
        Name of k-space, in formats that store arrays by name.

    Returns
    -------
    RawData

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of no known format, or has what cannot be reconstructed here. The methods of the
        result raise it as well. It is a :class:`MissingArrayError` if there is no array `variable`.
    """
    format_ = find_format(path)
    with _reading(path, format_):
        if format_.read_array is not None:
            raw = format_.read(path, axes, variable)
        elif axes or variable:
            raise MissingArrayError(
                "the format says itself which axes and arrays there are; leave out --axes and --variable"
            )
        else:
            raw = format_.read(path)
    guard = _reading(path, format_)  # as a decorator, for each call
    calibration = None if raw.read_calibration is None else guard(raw.read_calibration)
    source = {"format": format_.name, **raw.source}
    return replace(raw, read_slice=guard(raw.read_slice), read_calibration=calibration, source=source)


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """Return the array of a file with this name, such as `mask`, as it is stored; None if there is none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read.
    """
    format_ = find_format(path)
    if format_.read_array is None:
        return None
    with _reading(path, format_):
        return format_.read_array(path, name)


def find_format(path: Path) -> Format:
    """Return the format of a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it has no known format.
    """
    for format_ in FORMATS:
        with _reading(path):
            if format_.matches(path):
                return format_
    if not path.exists():
        raise FileNotFoundError(f"No such file: {path}")
    folder = path if path.is_dir() else path.parent
    if all((folder / name).is_file() for name in _BRUKER):
        raise ValueError(
            f"{path} cannot be read: it belongs to a scan of Bruker ParaVision. Convert it to ISMRMRD with "
            "bruker_to_ismrmrd or, if it is fully sampled, to BART's format with brukerapi (docs/formats.md)."
        )
    if path.is_dir():
        raise ValueError(f"{path} cannot be read: it is a folder; expected a file.")
    names = ", ".join(dict.fromkeys(format_.name for format_ in FORMATS))
    raise ValueError(f"{path} cannot be read: its content is of none of the formats {names}; is it cut short?")


@contextmanager
def _reading(path: Path, format_: Format | None = None) -> Iterator[None]:
    problem = f"{path} cannot be read{f' as {format_.name}' if format_ else ''}"
    try:
        yield
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise ValueError(f"{problem}: {error}") from error
    except (OSError, ValueError, EOFError, KeyError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        kind = MissingArrayError if isinstance(error, MissingArrayError) else ValueError
        raise kind(f"{problem}: {str(reason).rstrip('.')}.") from error
