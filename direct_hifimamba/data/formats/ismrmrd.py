"""ISMRMRD, also called MRD, in HDF5 [1]_.

References
----------
.. [1] Inati et al. ISMRM Raw data format: A proposed standard for MRI raw datasets. Magn Reson Med 77:411-421, 2017.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.optional import optional_package
from direct_hifimamba.data.formats.raw_data import Format, RawData
from direct_hifimamba.data.formats.readouts import READOUT, VOLUMES, Encoding, assemble


def _groups(path: Path) -> list[str]:
    if not h5py.is_hdf5(path):
        return []
    with h5py.File(path) as file:
        return [name for name, group in file.items() if isinstance(group, h5py.Group) and "xml" in group]


def _read(path: Path) -> RawData:
    with optional_package("ismrmrd", "ISMRMRD files", extra="formats"):
        from ismrmrd import constants
        from ismrmrd.xsd import CreateFromDocument

    groups = _groups(path)
    if len(groups) > 1:
        raise ValueError(f"it has the scans {', '.join(groups)}; expected one")
    with h5py.File(path) as file:
        group = file[groups[0]]
        if "data" not in group:
            raise ValueError(f"it has {', '.join(group)} and no 'data'; expected readouts, not images")
        try:
            header = CreateFromDocument(group["xml"][0])
        except (TypeError, ValueError) as error:
            raise ValueError(f"its header is no valid ISMRMRD document: {error}") from error
        heads = group["data"].fields("head")[:]
    if len(header.encoding) != 1:
        raise ValueError(f"it has {len(header.encoding)} encodings; expected one. Write each to a file of its own")
    encoding = _encoding(header)

    flags = heads["flags"]

    def has(*names: str) -> NDArray[np.bool_]:
        return (flags & np.uint64(sum(1 << (getattr(constants, f"ACQ_{name}") - 1) for name in names))) != 0

    if has("IS_REVERSE").any():
        raise ValueError("it has reversed readouts, of an echo-planar or bipolar sequence; expected one direction")
    noise, both = has("IS_NOISE_MEASUREMENT"), has("IS_PARALLEL_CALIBRATION_AND_IMAGING")
    calibration = has("IS_PARALLEL_CALIBRATION") | both
    other = has(
        *("IS_NAVIGATION_DATA", "IS_PHASECORR_DATA", "IS_HPFEEDBACK_DATA", "IS_DUMMYSCAN_DATA", "IS_RTFEEDBACK_DATA"),
        *("IS_SURFACECOILCORRECTIONSCAN_DATA", "IS_PHASE_STABILIZATION_REFERENCE", "IS_PHASE_STABILIZATION"),
    )
    readouts = np.zeros(len(heads), READOUT)
    readouts["noise"] = noise
    readouts["calibration"] = calibration & ~noise & ~other
    readouts["image"] = (both | ~calibration) & ~noise & ~other
    index = heads["idx"]
    readouts["volume"] = np.stack([index[name] for name in VOLUMES], axis=1)
    readouts["slice"] = index["slice"]
    if len(np.unique(index["kspace_encode_step_2"][readouts["image"]])) > 1:
        raise ValueError(
            "its readouts belong to several partitions (kspace_encode_step_2), but its header describes one; expected "
            "2-D slices"
        )
    limit = header.encoding[0].encodingLimits.kspace_encoding_step_1
    readouts["line"] = index["kspace_encode_step_1"].astype(int) - (
        encoding.matrix[1] // 2 if limit is None else limit.center
    )
    readouts["coils"], readouts["samples"] = heads["active_channels"], heads["number_of_samples"]
    readouts["center"], readouts["dwell"] = heads["center_sample"], heads["sample_time_us"]
    readouts["discard"] = np.stack([heads["discard_pre"], heads["discard_post"]], axis=1)
    readouts["position"] = heads["position"]
    # The Fourier transform of Siemens' data has the other sign, which turns images by 180 degrees: see twix.py.
    sign = -1 if encoding.source.get("vendor", "").upper().startswith("SIEMENS") else 1
    readouts["directions"] = np.stack([sign * heads["read_dir"], sign * heads["phase_dir"], heads["slice_dir"]], axis=1)

    def load(rows: Sequence[int]) -> Iterator[NDArray[np.complex64]]:
        with h5py.File(path) as file:
            stored = file[groups[0]]["data"].fields("data")[rows]
        for row, values in zip(rows, stored, strict=True):
            coils, samples = readouts[["coils", "samples"]][row]
            if values.size != 2 * coils * samples:
                raise ValueError(
                    f"readout {row} has {values.size} numbers; expected {coils} coils x {samples} complex samples"
                )
            yield values.view(np.complex64).reshape(coils, samples)

    return assemble(readouts, load, encoding)


def _encoding(header: Any) -> Encoding:
    encoding = header.encoding[0]
    trajectory = encoding.trajectory.value
    if trajectory != "cartesian":
        raise ValueError(f"its trajectory is {trajectory}; expected cartesian, which is all that is read")
    encoded, wanted = encoding.encodedSpace, encoding.reconSpace
    if encoded.matrixSize.z > 1:
        raise ValueError(f"it is three-dimensional, with {encoded.matrixSize.z} partitions; expected 2-D slices")
    views = [(space.fieldOfView_mm.x, space.fieldOfView_mm.y) for space in (encoded, wanted)]
    matrices = [(space.matrixSize.x, space.matrixSize.y) for space in (encoded, wanted)]
    if min(*views[0], *views[1], *matrices[0]) <= 0:
        raise ValueError(
            f"its header has the matrix {matrices[0]} and the fields of view {views}; expected sizes above 0"
        )
    if matrices[0][0] > matrices[1][0] and np.isclose(views[0][0], views[1][0]):
        # Some writers give the view without readout oversampling for both. No scanner makes such images coarser.
        views[0] = views[0][0] * matrices[0][0] / matrices[1][0], views[0][1]
    parallel = encoding.parallelImaging
    mode = parallel.calibrationMode.value if parallel is not None and parallel.calibrationMode is not None else ""
    if parallel is not None and parallel.multiband is not None:
        raise ValueError("its slices were excited several at a time (multiband); expected one at a time")
    system = header.acquisitionSystemInformation
    known = {
        "vendor": system and system.systemVendor,
        "model": system and system.systemModel,
        "field strength": system and system.systemFieldStrength_T and f"{system.systemFieldStrength_T:.4g} T",
    }
    return Encoding(
        matrix=matrices[0],
        field_of_view=views[0],
        image_view=views[1],
        image_matrix=matrices[1],
        thickness=encoded.fieldOfView_mm.z,
        calibration_apart=mode in ("separate", "external"),
        source={"format": "ISMRMRD", **{name: value for name, value in known.items() if value}},
    )


FORMAT = Format("ISMRMRD", lambda path: bool(_groups(path)), _read)
