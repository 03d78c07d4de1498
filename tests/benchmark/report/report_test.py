from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lxml.html
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.report import report
from direct_hifimamba.benchmark.report.charts import CHARTS
from direct_hifimamba.benchmark.report.pictures import ZOOM, draw
from direct_hifimamba.benchmark.report.report import write_report
from direct_hifimamba.benchmark.report.slices import SliceKey, choose_slices
from direct_hifimamba.benchmark.score.collect import ZERO_FILLED
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.summary import SummaryRow
from direct_hifimamba.benchmark.score.table import Scores
from tests.benchmark.report_folder import ACCELERATIONS, CLASSICAL, ERROR, FAILING, HOSTILE, OURS, SIZE, write_folder

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE = {"width": 390, "height": 844}


class Written(NamedTuple):
    """The folder of a benchmark, what it has found, and its page."""

    folder: BenchmarkFolder
    results: Results
    scores: Scores
    path: Path

    def again(self, results: Results) -> Any:
        """The page of other results, without images, which is not kept; it takes a tenth of the time."""
        before = self.path.read_bytes()
        scores = Scores(self.scores.of_model(ZERO_FILLED, ZERO_FILLED))
        page = lxml.html.fromstring(write_report(self.folder, results, scores).read_text("utf-8"))
        self.path.write_bytes(before)
        return page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, results, scores = write_folder(tmp_path_factory.mktemp("benchmark"))
    return Written(folder, results, scores, write_report(folder, results, scores))


@pytest.fixture(scope="module")
def text(written: Written) -> str:
    return written.path.read_text("utf-8")


@pytest.fixture(scope="module")
def document(text: str) -> Any:
    return lxml.html.fromstring(text)


def words(element: Any) -> str:
    return " ".join(element.text_content().split())


def test_is_the_same_when_written_again(written: Written, text: str) -> None:
    folder, results, scores, _ = written
    assert write_report(folder, results, scores).read_text("utf-8") == text
    assert [path.name for path in folder.report.parent.iterdir()] == ["index.html"]


def test_fetches_nothing(document: Any) -> None:
    for element in document.iter():
        for attribute in ("src", "href", "srcset", "action", "poster", "data"):
            value = element.get(attribute)
            assert value is None or value.startswith(("#", "data:")), (element.tag, value)
    styles = " ".join(document.xpath("//style/text()") + document.xpath("//@style"))
    assert "@import" not in styles
    assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)]*)", styles))
    assert not document.xpath("//link[@rel='stylesheet'] | //script[@src] | //iframe | //object")


def test_every_picture_says_what_it_shows(document: Any) -> None:
    images = document.xpath("//img")
    assert images
    for image in images:
        assert len(image.get("alt", "")) > 5


def test_headings_are_in_order(document: Any) -> None:
    levels = [int(heading.tag[1]) for heading in document.xpath("//h1 | //h2 | //h3 | //h4 | //h5 | //h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_has_language_landmarks_and_captions(document: Any) -> None:
    assert document.get("lang") == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert len(document.xpath(f"//{landmark}")) == 1
    for table in document.xpath("//table"):
        assert words(table.find("caption"))
        assert all(header.get("scope") in ("col", "row") for header in table.xpath(".//th"))
        assert all(row.find("th").get("scope") == "row" for row in table.xpath("./tbody/tr"))


def test_identifiers_are_unique_and_links_lead_somewhere(document: Any) -> None:
    names = document.xpath("//@id")
    assert len(names) == len(set(names))
    references = [value[1:] for value in document.xpath("//@href") if value.startswith("#")]
    references += document.xpath("//@aria-labelledby")
    assert references and set(references) <= set(names)


def test_escapes_what_it_is_given(document: Any, written: Written) -> None:
    assert words(document.find(".//h1")) == written.results.name
    assert not document.xpath("//h1/i | //th/b | //summary//b/b | //pre/script")
    assert not document.xpath("//script")
    assert HOSTILE in [words(header) for header in document.xpath("//th[@scope='row']")]
    assert any(HOSTILE in text for text in document.xpath("//figure[@class='chart']/img/@alt"))


def score_table(document: Any, acceleration: str) -> dict[str, list[str]]:
    """The cells of fastMRI's scores at an acceleration, header included, by model."""
    (table,) = document.xpath(f"//div[starts-with(@aria-label, 'fastMRI at {acceleration}: mean')]/table")
    return {words(row[0]): [words(cell) for cell in row[1:]] for row in table.xpath("./thead/tr | ./tbody/tr")}


def test_tables_have_the_means_and_begin_with_the_best(document: Any, written: Written) -> None:
    for acceleration in ACCELERATIONS:
        header, *rows = score_table(document, acceleration).items()
        column = header[1].index("PSNR, dB ↑")
        shown = {label: cells[column] for label, cells in rows}
        means = {row.model: row.mean for row in written.results.summary if is_psnr(row, acceleration)}
        assert list(shown) == [*sorted(means, key=means.__getitem__, reverse=True), FAILING]
        assert all(shown[label].startswith(f"{mean:.2f}") for label, mean in means.items())


def is_psnr(row: SummaryRow, acceleration: str) -> bool:
    return (row.acceleration, row.metric) == (acceleration, "fastmri_psnr")


def test_marks_the_best_without_colour(document: Any) -> None:
    best = document.xpath("//td[@class='best']")
    assert best and all("(best)" in words(cell) for cell in best)


def test_cost_table_has_the_time_of_the_whole_training(document: Any, written: Written) -> None:
    (table,) = document.xpath("//div[@aria-label='What the models cost.']/table")
    headers = [words(header) for header in table.xpath("./thead/tr/th")]
    rows = {words(row.find("th")): dict(zip(headers, row, strict=True)) for row in table.xpath("./tbody/tr")}
    for model in written.results.models:
        cells = rows[model.label]
        if model.cost is None or model.cost.seconds_per_iteration is None or model.iterations is None:
            assert words(cells["training, min (estimated)"]) == "-"
        else:
            minutes = model.cost.seconds_per_iteration.median * model.iterations / 60
            assert words(cells["training, min (estimated)"]) == f"{minutes:.1f}"
            assert words(cells["iterations"]) == str(model.iterations)


def test_says_that_data_are_simulated(written: Written, document: Any) -> None:
    assert "Simulated data" in words(document.find(".//header"))
    assert written.results.description in words(document.find(".//header"))


def test_says_that_some_data_are_simulated(written: Written) -> None:
    data = replace(written.results.protocol.data, origin=f"measured, {written.results.protocol.data.origin}")
    page = written.again(replace(written.results, protocol=replace(written.results.protocol, data=data)))
    assert "Some of the k-space was simulated" in words(page.find(".//header"))


def test_provenance_names_the_subjects_and_the_files_of_the_download(written: Written) -> None:
    files = list(written.results.protocol.data.files)
    data = replace(written.results.protocol.data, groups=dict.fromkeys(files, "p7"), sources={files[0]: "ab12"})
    page = written.again(replace(written.results, protocol=replace(written.results.protocol, data=data)))
    section = words(page.find(".//section[@aria-labelledby='provenance']"))
    assert f"{data.origin}; subjects of the test: p7" in section
    assert "ab12" in section


def test_says_how_many_seeds_finished(document: Any) -> None:
    seeds = {label: cells[-1] for label, cells in score_table(document, next(iter(ACCELERATIONS))).items()}
    assert (seeds[OURS], seeds[FAILING]) == ("1", "0")


def test_numbers_show_their_uncertainty_on_demand(document: Any) -> None:
    cells = document.xpath("//section[@aria-labelledby='scores']//td/details")
    assert cells and not any(cell.get("open") for cell in cells)
    assert all(len(cell.xpath("./summary/small")) == 1 for cell in cells)  # one interval
    assert "standard deviation over subjects" in words(cells[0])


def test_has_every_chart(document: Any) -> None:
    for name, chart in CHARTS.items():
        section = document.xpath(f"//section[@aria-labelledby='{name}']")[0]
        assert words(section.find("h2")) == chart.title
        assert len(section.xpath(".//figure/img[starts-with(@src, 'data:image/svg+xml;base64,')]")) >= len(
            ACCELERATIONS
        )


def test_learning_curves_are_of_loss_and_validation_against_iterations_and_time(document: Any) -> None:
    section = document.xpath("//section[@aria-labelledby='learning_curves']")[0]
    curves = ("Training loss", "Validation PSNR, dB at equispaced_4x")
    expected = [f"{what} against {x}" for what in curves for x in ("iteration", "training time, min")]
    assert [words(caption) for caption in section.xpath(".//figcaption")] == expected
    assert f"{OURS} (seed 0)" in section.xpath(".//img/@alt")[-1]


def test_without_logs_there_are_no_learning_curves(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "read_curve", lambda _: None)
    page = written.again(written.results)
    assert not page.xpath("//section[@aria-labelledby='learning_curves'] | //a[@href='#learning_curves']")


def test_reports_failures(document: Any) -> None:
    rows = document.xpath("//section[@aria-labelledby='failures']//tbody/tr")
    assert len(rows) == 1 and FAILING in words(rows[0]) and ERROR in words(rows[0])


def test_shows_the_median_best_and_worst_slice(document: Any, written: Written) -> None:
    trained = [model.label for model in written.results.models if model.kind == "trained" and model.label != FAILING]
    for acceleration in ACCELERATIONS:
        found = [written.scores.slices(label, acceleration, "fastmri_psnr")[0] for label in trained]
        values = {
            SliceKey(file, index): np.mean([scores[file][index] for scores in found])
            for file in found[0]
            for index in range(len(found[0][file]))
        }
        shown = document.xpath(f"//ul[@class='tiles'][contains(@aria-label, ' at {acceleration}')]")
        assert len(shown) == 3
        for tiles, extreme in zip(shown[1:], (max, min), strict=True):
            key = extreme(values, key=values.__getitem__)
            assert tiles.get("aria-label") == f"{key} at {acceleration}"
            captions = " ".join(words(caption) for caption in tiles.xpath(".//figcaption"))
            assert all(label in captions for label in (*trained, "Target", CLASSICAL, ZERO_FILLED))
            assert f"PSNR {found[0][key.file][key.number]:.2f}" in captions


def decode(uri: str) -> np.ndarray:
    assert "VP8L" in str(base64.b64decode(uri.partition(",")[2])[:16])  # without loss
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"))


def test_shows_the_images_and_errors_that_were_predicted(document: Any) -> None:
    for tiles in document.xpath("//ul[@class='tiles']"):
        target, *pictures = (decode(uri) for uri in tiles.xpath(".//img/@src"))
        assert target.shape == (2 * SIZE[0] - SIZE[0] % ZOOM, SIZE[1])
        names = [words(name) for name in tiles.xpath(".//figcaption/b")][1:]
        errors = {}
        for name, image, error in zip(names, pictures[::2], pictures[1::2], strict=True):
            assert np.corrcoef(image.ravel(), target.ravel())[0, 1] > 0.6
            errors[name] = error.mean()
        assert errors[OURS] < errors["VarNet"] < errors[CLASSICAL] < errors[ZERO_FILLED]


def test_of_measured_data_without_models_and_failures(written: Written) -> None:
    results = written.results
    measured = replace(
        results,
        protocol=replace(results.protocol, data=replace(results.protocol.data, origin="measured")),
        failures=[],
        summary=[
            replace(row, difference=None, difference_to_best=None)
            for row in results.summary
            if row.model == ZERO_FILLED
        ],
    )
    page = written.again(measured)
    assert "Simulated data" not in words(page)
    assert not page.xpath("//ul[contains(@class, 'tiles')] | //section[@aria-labelledby='images']")
    assert "None." in words(page.xpath("//section[@aria-labelledby='failures']")[0])


def test_chooses_slices_by_their_mean() -> None:
    values = {SliceKey("a", index): float(value) for index, value in enumerate([3, 1, 4, 2])}
    expected = {"median": SliceKey("a", 3), "best": SliceKey("a", 2), "worst": SliceKey("a", 1)}
    assert choose_slices([values]) == choose_slices([dict.fromkeys(values, 9.0), values]) == expected
    assert set(choose_slices([values, {SliceKey("a", 0): 1.0}]).values()) == {SliceKey("a", 0)}
    assert choose_slices([values, {}]) == {}


def test_the_window_is_magnified_and_framed() -> None:
    values = np.random.default_rng(0).uniform(0, 0.9, (30, 37)).astype(np.float32)
    window = slice(4, 14), slice(20, 32)
    picture = decode(draw(values, window))
    grey = np.asarray(mpl.colormaps["gray"](values, bytes=True))[..., 0]
    np.testing.assert_array_equal(picture[30::ZOOM, : 12 * ZOOM : ZOOM], grey[window])
    assert (picture[4, 20:32] == 255).all() and (picture[4:14, 31] == 255).all() and not picture[30:, 36:].any()
    np.testing.assert_array_equal(picture[:4], grey[:4])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=BROWSER_OPTIONS.split())
        yield chromium
        chromium.close()


class Visit:
    """A page in the browser, with what it logs and asks for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.address = path.as_uri()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.address)


@pytest.fixture
def visit(browser: Any, written: Written) -> Iterator[Any]:
    visits = []

    def open_page(**options: Any) -> Visit:
        visits.append(Visit(browser, written.path, **options))
        return visits[-1]

    yield open_page
    for entry in visits:
        assert entry.messages == []
        assert [url for url in entry.requests if url != entry.address and not url.startswith("data:")] == []
        entry.page.close()


def test_fits_a_phone(visit: Any) -> None:
    page = visit(viewport=PHONE).page
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_is_complete_without_scripts(visit: Any) -> None:
    page = visit(java_script_enabled=False).page
    page.locator("summary", has_text="Calgary-Campinas").first.click()
    assert page.locator("details[open] table").first.is_visible()
    assert page.locator("ul.tiles").first.is_visible()
    assert page.get_by_role("heading", name="Provenance").is_visible()
