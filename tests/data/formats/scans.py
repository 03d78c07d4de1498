"""Small scans with known k-space, and files of them in the formats of scanners."""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

SLICES, COILS, HEIGHT, WIDTH = 3, 2, 12, 16
SAMPLES = 2 * HEIGHT
PIXEL, THICKNESS = (2.0, 1.5), 4.0
QUATERNION = np.array([0.8, 0.2, 0.4, 0.4])
ROTATION = Rotation.from_quat(QUATERNION, scalar_first=True).as_matrix()
#: Directions of rising indices. Siemens counts readout and lines the other way round, see twix.py.
PHASE, READ, NORMAL = -ROTATION[:, 0], -ROTATION[:, 1], ROTATION[:, 2]


def complex_noise(*shape: int, seed: int = 0) -> NDArray[np.complex64]:
    """White noise with variance 1 of the complex values."""
    values = np.random.default_rng(seed).standard_normal((*shape, 2), np.float32) / np.float32(2**0.5)
    return values.view(np.complex64)[..., 0]


def oversampled() -> NDArray[np.complex64]:
    """K-space (slices, coils, samples, lines) of random images in the middle half of the readout's field of view."""
    image = np.zeros((SLICES, COILS, SAMPLES, WIDTH), complex)
    image[:, :, SAMPLES // 4 : -SAMPLES // 4] = complex_noise(SLICES, COILS, HEIGHT, WIDTH)
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes)), axes).astype(np.complex64)


KSPACE = oversampled()


@dataclass
class Line:
    """One readout of a scan."""

    data: NDArray[np.complex64]  #: (coils, samples)
    line: int = 0  #: signed, from the centre
    slice: int = 0
    repetition: int = 0
    center: int = SAMPLES // 2
    discard: tuple[int, int] = (0, 0)
    kind: str = "image"  #: or "noise", "calibration", "both", "navigator", "reversed"


def lines_of(
    kspace: NDArray[np.complex64], lines: Sequence[int] = range(-WIDTH // 2, WIDTH // 2), **options: Any
) -> Iterator[Line]:
    """Readouts of k-space, the slices of each line one after the other."""
    for line in lines:
        for index, values in enumerate(kspace):
            yield Line(values[:, :, WIDTH // 2 + line], line, index, **options)


def position(index: int) -> NDArray[np.float64]:
    """Centre of a slice, LPS, in mm. The slices do not lie in the order of their indices."""
    return np.array([5, -7, 11]) + {0: 0, 1: 2, 2: 1}[index] * 6.0 * NORMAL


ORDER = [0, 2, 1]
"""Indices of the slices in the order of their positions."""


def write_ismrmrd(path: Path, lines: Sequence[Line], change: Callable[[Any], None] = lambda header: None) -> None:
    """Write a file of ISMRMRD; `change` may change its header."""
    import ismrmrd
    from ismrmrd import xsd

    def space(samples: int) -> Any:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=samples, y=WIDTH, z=1),
            fieldOfView_mm=xsd.fieldOfViewMm(x=samples * PIXEL[0], y=WIDTH * PIXEL[1], z=THICKNESS),
        )

    limit = xsd.limitType(minimum=0, maximum=WIDTH - 1, center=WIDTH // 2)
    encoding = xsd.encodingType(
        encodedSpace=space(SAMPLES),
        reconSpace=space(HEIGHT),
        encodingLimits=xsd.encodingLimitsType(kspace_encoding_step_1=limit),
        trajectory=xsd.trajectoryType.CARTESIAN,
        parallelImaging=xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(kspace_encoding_step_1=1, kspace_encoding_step_2=1),
            calibrationMode=xsd.calibrationModeType.EMBEDDED,
        ),
    )
    header = xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_500_000),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="Vendor", systemModel="Model", systemFieldStrength_T=1.5
        ),
        encoding=[encoding],
    )
    change(header)
    flags = {
        "noise": [ismrmrd.ACQ_IS_NOISE_MEASUREMENT],
        "calibration": [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION],
        "both": [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING],
        "navigator": [ismrmrd.ACQ_IS_NAVIGATION_DATA],
        "reversed": [ismrmrd.ACQ_IS_REVERSE],
    }
    acquisitions = []
    for line in lines:
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(line.data))
        acquisition.center_sample, acquisition.sample_time_us = line.center, 5
        acquisition.discard_pre, acquisition.discard_post = line.discard
        acquisition.idx.kspace_encode_step_1 = line.line + WIDTH // 2
        acquisition.idx.slice, acquisition.idx.repetition = line.slice, line.repetition
        acquisition.position[:] = position(line.slice).tolist()
        acquisition.read_dir[:], acquisition.phase_dir[:] = READ.tolist(), PHASE.tolist()
        acquisition.slice_dir[:] = NORMAL.tolist()
        for flag in flags.get(line.kind, []):
            acquisition.setFlag(flag)
        acquisitions.append(acquisition)
    with ismrmrd.File(path, "w") as file:
        group = file["dataset"]
        group.header, group.acquisitions = header, acquisitions


TWIX_HEADER = {
    "MeasYaps": f"""### ASCCONV BEGIN ###
sKSpace.lBaseResolution = {HEIGHT}
sKSpace.lPhaseEncodingLines = {WIDTH}
sKSpace.lPartitions = 8
sKSpace.ucDimension = 2
sKSpace.ucTrajectory = 1
sSliceArray.asSlice[0].dThickness = {THICKNESS}
sSliceArray.asSlice[0].dReadoutFOV = {HEIGHT * PIXEL[0]}
sSliceArray.asSlice[0].dPhaseFOV = {WIDTH * PIXEL[1]}
sRXSPEC.alDwellTime[0] = 5000
sPat.ucRefScanMode = 2
### ASCCONV END ###""",
    "Meas": '<ParamString."tPatientName"> { "Doe^Jane" } <ParamLong."alRegridMode"> { 1 1 }',
    "Dicom": """<ParamDouble."flReadoutOSFactor"> { <Precision> 6  2.0 }
<ParamDouble."flMagneticFieldStrength"> { <Precision> 6  2.89 }
<ParamString."ManufacturersModelName"> { "Model" }""",
}


def write_twix(
    path: Path,
    lines: Sequence[Line],
    change: Callable[[str], str] = lambda header: header,
    before: Sequence[Line] = (),
) -> None:
    """Write a file of Siemens' software VE; `change` may change the text of its header.

    The lines `before` are another measurement in the same file, with half of the dwell time.
    """
    from twixtools import write_twix as write
    from twixtools.mdb import Mdb_local

    def header(dwell: int) -> NDArray[np.bytes_]:
        texts = {name: text.replace("= 5000", f"= {dwell}") for name, text in TWIX_HEADER.items()}
        parts = {name: change(text).encode() for name, text in texts.items()}
        body = b"".join(f"{name}\0".encode() + len(part).to_bytes(4, "little") + part for name, part in parts.items())
        return np.frombuffer(struct.pack("<II", len(body) + 8, len(parts)) + body, "S1")

    flags = {
        "noise": ["NOISEADJSCAN"],
        "calibration": ["PATREFSCAN"],
        "both": ["PATREFSCAN", "PATREFANDIMASCAN"],
        "navigator": ["RTFEEDBACK"],
        "reversed": ["REFLECT"],
    }

    def block_of(line: Line) -> Any:
        block = Mdb_local(line.data)
        head = block.mdh
        head.CenterCol, head.CenterLin = line.center, WIDTH // 2
        head.CutOff.Pre, head.CutOff.Post = line.discard
        head.Counter.Lin, head.Counter.Sli, head.Counter.Rep = line.line + WIDTH // 2, line.slice, line.repetition
        where = head.SliceData.SlicePos
        where.Sag, where.Cor, where.Tra = position(line.slice)
        head.SliceData.Quaternion[:] = QUATERNION
        for flag in flags.get(line.kind, []):
            block.add_flag(flag)
        return block

    measurements = [(before, 2500), (lines, 5000)] if before else [(lines, 5000)]
    write([{"hdr_str": header(dwell), "mdb": list(map(block_of, each))} for each, dwell in measurements], str(path))
