"""Data sets of ours under the names by which DIRECT's configurations find them.

DIRECT looks a data set up as an attribute of one of its modules, after it has imported the model. So importing a model
of ours, or running `direct-hifimamba train`, puts them there.
"""

from direct.data import datasets, datasets_config

from direct_hifimamba.data.sensitivity import FastMRIWithMapsConfig, FastMRIWithMapsDataset
from direct_hifimamba.data.simulation.dataset import SimulatedMultiCoilConfig, SimulatedMultiCoilDataset

DATA_SETS = {
    "FastMRIWithMaps": (FastMRIWithMapsDataset, FastMRIWithMapsConfig),
    "SimulatedMultiCoil": (SimulatedMultiCoilDataset, SimulatedMultiCoilConfig),
}


def register_data_sets() -> None:
    """Make our data sets known to DIRECT in this process. Calling it again changes nothing."""
    for name, (data_set, config) in DATA_SETS.items():
        setattr(datasets, f"{name}Dataset", data_set)
        setattr(datasets_config, f"{name}Config", config)
