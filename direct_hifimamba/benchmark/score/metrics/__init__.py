"""Metrics: every module defines one, in a function with the name of the module. There is no other registration."""

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules

from direct_hifimamba.benchmark.score.metric import GROUPS, Metric

_FOUND: dict[str, Metric] = {
    module.name: getattr(import_module(f"{__name__}.{module.name}"), module.name) for module in iter_modules(__path__)
}
METRICS = dict(sorted(_FOUND.items(), key=lambda item: list(GROUPS).index(item[1].group)))

DEFAULT = tuple(name for name, metric in METRICS.items() if metric.group == "fastmri")
"""What is computed unless others are asked for."""


def metric_definitions(names: Iterable[str] = DEFAULT) -> dict[str, str]:
    """Return what metrics are, in words, for the protocol of results."""
    return {name: METRICS[name].identity for name in names}
