"""The results of a benchmark as one page that needs no network: tables, charts, images, provenance."""

import json
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.report import tables
from direct_hifimamba.benchmark.report.charts import CHARTS, ReportData
from direct_hifimamba.benchmark.report.curves import read_curve
from direct_hifimamba.benchmark.report.pictures import ZOOM
from direct_hifimamba.benchmark.report.slices import compare_slices
from direct_hifimamba.benchmark.report.style import choose_styles
from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.table import Scores
from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.files import write_text


def write_report(folder: BenchmarkFolder, results: Results, scores: Scores) -> Path:
    """Write the page.

    Parameters
    ----------
    folder : BenchmarkFolder
        With the predictions, and the logs of the trainings.
    results : Results
    scores : Scores

    Returns
    -------
    Path
        Path of the page, which is complete or does not exist.

    Raises
    ------
    OSError, ValueError
        If an image cannot be read.
    """
    specification = Specification.load(folder.specification)
    accelerations = results.protocol.accelerations
    trained = [model.label for model in results.models if model.kind == "trained"]
    found = {(label, seed): folder.cell(label, seed).run for label in trained for seed in results.protocol.seeds}
    curves = {key: curve for key, path in found.items() if (curve := read_curve(path)) is not None}
    styles = choose_styles([model.label for model in results.models])
    data = ReportData(results, scores, curves, styles)
    compared = (compare_slices(folder, specification, results, scores, name) for name in accelerations)
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html").render(
        results=results,
        tables=tables,
        metrics={name: METRICS[name] for name in scores.metrics},
        simulated=SIMULATED,
        charts={name: (chart, drawings) for name, chart in CHARTS.items() if (drawings := list(chart.draw(data)))},
        comparisons=[comparison for comparison in compared if comparison is not None],
        zoom=ZOOM,
        protocol_text=json.dumps(asdict(results.protocol), indent=1),
    )
    folder.report.parent.mkdir(parents=True, exist_ok=True)
    write_text(folder.report, text)
    return folder.report
