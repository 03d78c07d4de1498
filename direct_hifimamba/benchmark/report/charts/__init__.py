"""Charts: every module of this package that defines one, in a function with the name of the module."""

from importlib import import_module
from pkgutil import iter_modules

from direct_hifimamba.benchmark.report.charts.chart import Chart

_MODULES = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
CHARTS: dict[str, Chart] = {
    name: found for name, module in _MODULES.items() if isinstance(found := getattr(module, name, None), Chart)
}
