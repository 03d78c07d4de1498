"""Error by spatial frequency."""

import numpy as np
from matplotlib.ticker import FuncFormatter, NullLocator

from direct_hifimamba.benchmark.report.charts.chart import Drawing, ReportData, chart
from direct_hifimamba.benchmark.report.charts.style import canvas
from direct_hifimamba.benchmark.score.spectrum import BANDS, EDGES


@chart(
    title="Error spectra",
    text="Energy of the error over energy of the target, both of magnitude images, in rings of their Fourier "
    "transform, from the centre to the Nyquist frequency: the mean over volumes and seeds. Lower is better; at 1 the "
    "error is as strong as the image itself.",
)
def error_spectra(data: ReportData) -> list[Drawing]:
    """Return a chart per acceleration, with a line per model."""
    drawings = (_draw(data, acceleration) for acceleration in data.results.protocol.accelerations)
    return [drawing for drawing in drawings if drawing is not None]


def _draw(data: ReportData, acceleration: str) -> Drawing | None:
    spectra = {}
    for model in data.results.models:
        bands = [data.scores.volumes(model.label, acceleration, name) for name in BANDS]
        values = [[value for files in band.values() for value in files.values()] for band in bands]
        if all(values):
            spectra[model.label] = np.ma.masked_invalid(values).mean(axis=1).filled(np.nan)
    if not spectra:
        return None
    with canvas("spatial frequency / Nyquist frequency", "relative error energy, magnitude", height=3.4) as drawing:
        for label, values in spectra.items():
            middles = np.convolve(EDGES, (0.5, 0.5), "valid")
            drawing.axes.plot(middles, values, label=label, markevery=3, **data.styles[label])
        drawing.axes.set_yscale("log")
        drawing.axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        drawing.axes.yaxis.set_minor_locator(NullLocator())
    description = "The numbers are in scores.parquet, as the metrics spectrum_0 (centre), spectrum_1, ..."
    return Drawing(drawing.uri, f"Relative error energy at {acceleration}", description)
