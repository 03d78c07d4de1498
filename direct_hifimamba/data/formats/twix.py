"""Siemens' raw data (`.dat`, also called twix), as far as twixtools reads them."""

import re
import struct
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.optional import optional_package
from direct_hifimamba.data.formats.raw_data import Format, RawData
from direct_hifimamba.data.formats.readouts import READOUT, Encoding, assemble

_MEASUREMENTS = 64
"""Most measurements that a file of VD and later software versions has."""

_TRAJECTORIES = {1: "Cartesian", 2: "radial", 4: "spiral", 8: "blade"}
_CALIBRATION_APART = 4
"""Value of `ucRefScanMode` for calibration lines that a measurement of their own has."""

_IGNORED = (
    *("ACQEND", "SYNCDATA", "RTFEEDBACK", "HPFEEDBACK", "PHASCOR", "REFPHASESTABSCAN", "PHASESTABSCAN"),
    "noname60",  # navigators, which twixtools knows by this name
)


def _extents(path: Path) -> list[tuple[int, int]]:
    """Return offset and length of the measurements of a file, none if it is no raw data of Siemens."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start = file.read(8 + _MEASUREMENTS * 152)
        if len(start) < 8:
            return []
        first, count = struct.unpack_from("<II", start)
        if first < 10_000 and 0 < count <= _MEASUREMENTS and len(start) == 8 + _MEASUREMENTS * 152:  # since VD
            extents = [struct.unpack_from("<QQ", start, 16 + 152 * index) for index in range(count)]
        else:
            extents = [(0, path.stat().st_size)]
        file.seek(min(extents[0][0], path.stat().st_size))
        # Size of the header, number of its parts, and name of the first one.
        return extents if re.match(rb".{4}[\1-\100]\0{3}\w{4,}\0", file.read(64), re.DOTALL) else []


def _read(path: Path) -> RawData:
    with optional_package("twixtools", "Files of Siemens", extra="formats"):
        from twixtools import read_twix

    end = max(offset + length for offset, length in _extents(path))
    if end > path.stat().st_size:
        raise ValueError(f"it is cut short: it has {path.stat().st_size} bytes; expected {end}")
    if not path.suffix:
        raise ValueError(f"twixtools reads files with a suffix alone; rename it to {path.name}.dat")
    options = {"verbose": False, "parse_pmu": False, "parse_geometry": False, "keep_acqend": True}
    try:
        scans = read_twix(str(path), **options)
        encoding = _encoding(scans[-1]["hdr"])
        dwells = [scan["hdr"]["MeasYaps"]["sRXSPEC"]["alDwellTime"][0] for scan in scans]
    except ValueError:
        raise
    except Exception as error:  # of a header that twixtools does not expect
        raise ValueError(f"its header cannot be understood: {type(error).__name__}: {error}") from error
    if not scans[-1]["mdb"] or not scans[-1]["mdb"][-1].is_flag_set("ACQEND"):
        raise ValueError("its last readout is not marked as the end of the measurement; it is cut short")
    blocks, rows = [], []
    for scan, dwell in zip(scans, dwells, strict=True):
        for block in scan["mdb"]:
            if any(map(block.is_flag_set, _IGNORED)) or not (scan is scans[-1] or block.is_flag_set("NOISEADJSCAN")):
                continue
            blocks.append(block)
            rows.append(_describe(block, dwell))

    def load(indices: Sequence[int]) -> Iterator[NDArray[np.complex64]]:
        with path.open("rb") as file:
            for index in indices:
                block = copy(blocks[index])
                block.fid = file
                yield block.data

    return assemble(np.array(rows, READOUT), load, encoding)


def _encoding(header: dict[str, Any]) -> Encoding:
    protocol = header["MeasYaps"]
    kspace, slices = protocol["sKSpace"], protocol["sSliceArray"]["asSlice"]
    trajectory = _TRAJECTORIES.get(kspace["ucTrajectory"], "unknown")
    if trajectory != "Cartesian":
        raise ValueError(f"its trajectory is {trajectory}; expected Cartesian, which is all that is read")
    if kspace["ucDimension"] != 2:
        raise ValueError(f"it is three-dimensional, with {kspace['lPartitions']} partitions; expected 2-D slices")
    if protocol.get("sSliceAcceleration", {}).get("lMultiBandFactor", 1) > 1:
        raise ValueError("its slices were excited several at a time (multiband); expected one at a time")
    if max(header["Meas"].get("alRegridMode") or [1]) > 1:
        raise ValueError("its readouts were sampled on ramps, as in echo-planar imaging; expected a constant gradient")
    resolution, lines = kspace["lBaseResolution"], kspace["lPhaseEncodingLines"]
    oversampling = float(header["Dicom"]["flReadoutOSFactor"])
    view = slices[0]["dReadoutFOV"], slices[0]["dPhaseFOV"]
    encoded = view[0] * oversampling, view[1] * (1 + kspace.get("dPhaseOversamplingForDialog", 0))
    return Encoding(
        matrix=(round(resolution * oversampling), lines),
        field_of_view=encoded,
        image_view=view,
        image_matrix=(resolution, round(resolution * view[1] / view[0])),
        thickness=slices[0]["dThickness"],
        calibration_apart=protocol.get("sPat", {}).get("ucRefScanMode") == _CALIBRATION_APART,
        source={
            "format": "Siemens twix",
            "vendor": "SIEMENS",
            "model": str(header["Dicom"]["ManufacturersModelName"]),
            "field strength": f"{header['Dicom']['flMagneticFieldStrength']:.4g} T",
        },
    )


def _describe(block: Any, dwell: int) -> tuple[Any, ...]:
    """Return the row of READOUT of a block of measurement data."""
    if block.is_flag_set("REFLECT"):
        raise ValueError("it has reversed readouts, of an echo-planar or bipolar sequence; expected one direction")
    head = block.mdh
    noise, both = block.is_flag_set("NOISEADJSCAN"), block.is_flag_set("PATREFANDIMASCAN")
    calibration = block.is_flag_set("PATREFSCAN") or both
    counter, position = head.Counter, head.SliceData.SlicePos
    w, x, y, z = (float(value) for value in head.SliceData.Quaternion)
    # The columns of the rotation are the directions of phase encoding, readout and slice. Siemens' data have the other
    # sign in the Fourier transform, which turns images by 180 degrees: air in a phantom shows it (twix_test.py).
    phase = 1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)
    readout = 2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)
    normal = 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)
    return (
        (both or not calibration) and not noise,
        calibration and not noise,
        noise,
        (counter.Eco, counter.Phs, counter.Set, counter.Rep),
        counter.Sli,
        int(counter.Lin) - int(head.CenterLin),
        head.UsedChannels,
        head.SamplesInScan,
        head.CenterCol,
        (head.CutOff.Pre, head.CutOff.Post),
        dwell,
        (position.Sag, position.Cor, position.Tra),
        [[-value for value in readout], [-value for value in phase], normal],
    )


FORMAT = Format("Siemens twix", lambda path: bool(_extents(path)), _read)
