"""What a chart is, and what it is drawn from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from direct_hifimamba.benchmark.report.curves import Curve
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.table import Scores


@dataclass(frozen=True)
class ReportData:
    """What charts show: results, scores, learning curves by model and seed, and arguments of `plot` by model."""

    results: Results
    scores: Scores
    curves: Mapping[tuple[str, int], Curve]
    styles: Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """A drawing as a data URI, and what it shows in words."""

    uri: str
    title: str
    description: str


@dataclass(frozen=True)
class Chart:
    """A kind of chart: a section of the page."""

    function: Callable[[ReportData], list[Drawing]]
    title: str
    text: str

    def __call__(self, data: ReportData) -> list[Drawing]:
        """Return the drawings, none if there is nothing to show."""
        return self.function(data)


def chart(**fields: Any) -> Callable[[Callable[[ReportData], list[Drawing]]], Chart]:
    """Return a decorator that makes a :class:`Chart` of a function."""
    return partial(Chart, **fields)
