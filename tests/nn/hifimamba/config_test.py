from __future__ import annotations

import copy
import inspect
import math
import pickle
import re
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
from direct.config.defaults import ModelConfig
from direct.data.transforms import fft2, ifft2
from direct.environment import load_model_config_from_name, load_models_into_environment_config
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from direct_hifimamba.nn.hifimamba.config import REMOVED_KEYS, HiFiMambaV2Config
from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2
from direct_hifimamba.nn.layers.config import NetworkConfig
from tests.helpers import TINY

OWN_FIELDS = [field for field in fields(HiFiMambaV2Config) if field not in fields(ModelConfig)]
CHOICES = {
    "pyramid": ["binomial", "haar", "none"],
    "pyramid_expand": ["bilinear", "binomial"],
    "moe": ["shared_routed", "shared", "routed", "none"],
    "expert_sharing": ["block", "stage", "network"],
    "coil_mode": ["sense", "channels"],
    "data_consistency": ["hard", "proximal"],
    "data_consistency_activation": ["silu", "none"],
    "initialisation": ["reference", "balanced"],
    "learning_rate_schedule": ["steps", "cosine", "paper"],
    "decayed_parameters": ["all", "matrices"],
    "scan_backend": ["auto", "reference", "torch", "native", "triton", "mamba_ssm"],
}
POSITIVE = [
    "patch_size",
    "state_size",
    "num_routed_experts",
    "num_coils",
    "data_consistency_steps",
]
SWITCHES = [field.name for field in OWN_FIELDS if field.type == "bool"]

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    *[({key: 0}, f"{key} is 0; expected an integer from 1 up") for key in POSITIVE],
    *[({key: -1}, f"{key} is -1; expected an integer from 1 up") for key in POSITIVE],
    *[({key: "nonsense"}, f"{key} is 'nonsense'; expected one of {', '.join(CHOICES[key])}") for key in CHOICES],
    ({"hidden_channels": 0}, "hidden_channels is 0; expected an integer from 2 up"),
    ({"hidden_channels": 7}, "hidden_channels is 7; expected an even number"),
    ({"blocks_per_stage": ()}, "blocks_per_stage is (); expected at least one integer"),
    ({"blocks_per_stage": (1, 0)}, "blocks_per_stage is (1, 0); expected at least one integer, and all from 1 up"),
    ({"blocks_per_stage": (1, 2.0)}, "blocks_per_stage is (1, 2.0); expected a list of integers"),
    ({"blocks_per_stage": (True,)}, "blocks_per_stage is (True,); expected a list of integers"),
    ({"blocks_per_stage": "22"}, "blocks_per_stage is '22'; expected a list of integers"),
    ({"blocks_per_stage": 2}, "blocks_per_stage is 2; expected a list of integers"),
    ({"scan_directions": 3}, "scan_directions is 3; expected 1, 2 or 4"),
    ({"scan_directions": 0}, "scan_directions is 0; expected 1, 2 or 4"),
    ({"scan_dropout": 1.0}, "scan_dropout is 1.0; expected a number in [0, 1)"),
    ({"scan_dropout": -0.1}, "scan_dropout is -0.1; expected a number in [0, 1)"),
    ({"stochastic_depth": 1}, "stochastic_depth is 1; expected a number in [0, 1)"),
    ({"stochastic_depth": math.nan}, "stochastic_depth is nan; expected a number in [0, 1)"),
    ({"load_balancing_weight": -1e-3}, "load_balancing_weight is -0.001; expected a finite number from 0 up"),
    ({"load_balancing_weight": math.inf}, "load_balancing_weight is inf; expected a finite number from 0 up"),
    ({"load_balancing_weight": math.nan}, "load_balancing_weight is nan; expected a finite number from 0 up"),
]
# A value of a wrong type for every type of field.
WRONG_TYPES: dict[str, list[Any]] = {
    "int": [2.0, "2", True, None],
    "float": ["0.1", False, None],
    "bool": [1, "true", None],
    "str": [1, None, True],
}


@pytest.mark.parametrize(("options", "message"), BAD_VALUES, ids=lambda value: str(value)[:60])
def test_a_bad_value_is_one_error_with_key_value_and_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HiFiMambaV2Config(**options)


@pytest.mark.parametrize("field", OWN_FIELDS, ids=lambda field: field.name)
def test_a_value_of_a_wrong_type_is_one_error_with_key_value_and_type(field: Any) -> None:
    if field.name == "blocks_per_stage":
        return  # among the bad values
    for value in WRONG_TYPES[field.type]:
        with pytest.raises(TypeError, match=rf"^{field.name} is {value!r} \({type(value).__name__}\); expected"):
            HiFiMambaV2Config(**{field.name: value})


def test_every_key_is_checked() -> None:
    checked = {key for options, _ in BAD_VALUES for key in options} | set(SWITCHES)
    assert checked == {field.name for field in OWN_FIELDS}


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_accepted(key: str) -> None:
    for choice in CHOICES[key]:
        config = HiFiMambaV2Config(**{key: choice})
        assert getattr(config, key) == choice
        if key != "scan_backend":
            HiFiMambaV2(fft2, ifft2, **(TINY | {key: choice}))


@pytest.mark.parametrize("key", SWITCHES)
def test_every_switch_is_accepted(key: str) -> None:
    for value in (True, False):
        assert getattr(HiFiMambaV2Config(**{key: value}), key) is value


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_channels": 2},
        {"stochastic_depth": 0, "scan_dropout": 0, "load_balancing_weight": 0},
        {"stochastic_depth": 0.999},
        {"scan_directions": 1},
        {"scan_directions": 2},
        {"scan_directions": 4},
        {"num_routed_experts": 1},
        {"num_routed_experts": 1, "moe": "none"},
        {"blocks_per_stage": [1]},
    ],
    ids=str,
)
def test_values_at_the_limits_are_accepted(options: dict[str, Any]) -> None:
    HiFiMambaV2Config(**options)


def test_the_defaults_are_those_of_the_reference_at_full_size() -> None:
    config = HiFiMambaV2Config()
    assert config.blocks_per_stage == (2,) * 6
    assert (config.hidden_channels, config.patch_size, config.state_size) == (128, 2, 16)
    assert (config.stochastic_depth, config.scan_dropout, config.load_balancing_weight) == (0.3, 0.1, 1e-3)
    assert config.num_routed_experts == 4


def documented_fields() -> dict[str, str]:
    """Name -> type and description of every parameter in the docstrings of the class and its base."""
    docstrings = [inspect.getdoc(config) for config in (NetworkConfig, HiFiMambaV2Config)]
    entries = [entry for text in docstrings for entry in re.split(r"^(?=\w+ : )", text, flags=re.MULTILINE)[1:]]
    return {name: text for name, _, text in (entry.partition(" : ") for entry in entries)}


def test_every_field_is_documented_in_order_with_its_type_and_default() -> None:
    documented = documented_fields()
    assert list(documented) == [field.name for field in OWN_FIELDS]
    for field in OWN_FIELDS:
        text = " ".join(documented[field.name].split())
        type_name = {"tuple[int, ...]": "tuple of int"}.get(field.type, field.type)
        assert text.startswith(f"{type_name} "), field.name
        written = re.search(r"Default: (.+?)(\.$|, )", text)
        if isinstance(field.default, tuple):
            assert str(field.default) in text
            continue
        assert written is not None, field.name
        assert eval(written[1]) == field.default, field.name  # a literal


def test_every_choice_is_documented() -> None:
    documented = documented_fields()
    for key, choices in CHOICES.items():
        if key != "scan_backend":  # documented with the scan
            assert all(f'"{choice}"' in documented[key] for choice in choices), key


def test_direct_merges_and_checks_a_configuration() -> None:
    config = load_model_config_from_name("hifimamba.hifimamba.HiFiMambaV2")
    assert config is HiFiMambaV2Config
    read = OmegaConf.create(
        "{model_name: hifimamba.hifimamba.HiFiMambaV2, hidden_channels: 16, blocks_per_stage: [1, 2], state_size: 3}"
    )
    merged = OmegaConf.merge(config, read)
    options = {key: value for key, value in merged.items() if key != "engine_name"}
    network = HiFiMambaV2(fft2, ifft2, **options)
    assert network.config.blocks_per_stage == (1, 2)
    assert (network.config.hidden_channels, network.config.state_size) == (16, 3)
    assert [len(stage.blocks) for stage in network.stages] == [1, 2]


@pytest.mark.parametrize(
    "text", ["{hiden_channels: 16}", "{hidden_channels: many}", "{steering: 3.5}", "{blocks_per_stage: [one]}"]
)
def test_direct_refuses_unknown_keys_and_wrong_types(text: str) -> None:
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.merge(HiFiMambaV2Config, OmegaConf.create(text))


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_a_removed_key_is_an_error_that_names_the_last_revision_that_had_it(key: str) -> None:
    message = rf"no longer has {key}; revision 8c8114b is the last"
    for construct in (HiFiMambaV2Config, partial(HiFiMambaV2, fft2, ifft2)):
        with pytest.raises(ValueError, match=message) as error:
            construct(**{key: REMOVED_KEYS[key]})
        assert f"{key}: {REMOVED_KEYS[key]!r}" in str(error.value)  # what it acts as now


def test_the_host_names_that_revision_as_well() -> None:
    read = OmegaConf.create({"model": {"model_name": "hifimamba.hifimamba.HiFiMambaV2", "scan_folds": 2.0}})
    with pytest.raises(
        OmegaConfBaseException, match=r"Key 'scan_folds' not in .*8c8114b is the last that had .*scan_folds"
    ):
        load_models_into_environment_config(read)


def test_a_configuration_can_be_copied_and_printed() -> None:
    config = HiFiMambaV2Config(hidden_channels=6)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert repr(config).startswith("HiFiMambaV2Config(")
