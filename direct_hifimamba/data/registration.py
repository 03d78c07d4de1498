"""Registration of this package's data sets and metrics, so that DIRECT's configurations can name them.

DIRECT looks them up as attributes of its modules, after it has imported the model. So the import of a model of this
package, or `direct-hifimamba train`, sets these attributes.
"""

import direct.environment  # noqa: F401  # before the data sets' configurations, which import it in a circle
from direct import functionals
from direct.data import datasets, datasets_config

from direct_hifimamba.data.paper_metrics import METRICS
from direct_hifimamba.data.sensitivity import FastMRIWithMapsConfig, FastMRIWithMapsDataset
from direct_hifimamba.data.simulation.dataset import SimulatedMultiCoilConfig, SimulatedMultiCoilDataset
from direct_hifimamba.data.stored_masks import FastMRIWithMasksConfig, FastMRIWithMasksDataset

DATA_SETS = {
    "FastMRIWithMasks": (FastMRIWithMasksDataset, FastMRIWithMasksConfig),
    "FastMRIWithMaps": (FastMRIWithMapsDataset, FastMRIWithMapsConfig),
    "SimulatedMultiCoil": (SimulatedMultiCoilDataset, SimulatedMultiCoilConfig),
}


def register_data_sets() -> None:
    """Make our data sets and metrics known to DIRECT in this process. Calling it again changes nothing."""
    for name, (data_set, config) in DATA_SETS.items():
        setattr(datasets, f"{name}Dataset", data_set)
        setattr(datasets_config, f"{name}Config", config)
    for metric in METRICS:
        setattr(functionals, metric.__name__, metric)
