"""Test of projects/hifimamba/self_supervised.py, without its trainings."""

import shlex
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.training.compose import compose
from tests.data import lookalikes

PROJECT = Path(__file__).parents[2] / "projects" / "hifimamba"


def test_trainings_differ_in_their_references_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT)
    study = import_module("self_supervised")
    overrides = {
        name: [*shlex.split(study.SHARED), "training.num_iterations=6", *shlex.split(words)]
        for name, words in study.TRAININGS.items()
    }
    without, with_references = (compose(study.PARTS, words) for words in overrides.values())
    for config in (without, with_references):
        assert config.training.datasets[0].pass_mask
        assert config.training.datasets[0].transforms.masking is None
    assert without.training.datasets[0].transforms.transforms_type == "ssl_ssdu"
    assert with_references.training.datasets[0].transforms.transforms_type == "supervised"
    for config in (without, with_references):
        del config.model.engine_name, config.training.loss.losses
        del config.training.datasets[0].transforms.transforms_type
    assert without == with_references

    image = lookalikes.magnitude(0, 2, 32, 32)
    kspace = lookalikes.centred_fft(lookalikes.measure(image, 3, 0))
    mask = np.arange(32) % 2 == 0
    write_volume(tmp_path / "volume.h5", kspace, {}, mask)
    aliased = np.linalg.norm(lookalikes.centred_fft(kspace * mask, inverse=True), axis=1)
    psnr = 10 * np.log10(image.max() ** 2 / np.square(aliased - image).mean())
    assert study.score(tmp_path, study.zero_filled)[0] == pytest.approx(psnr, abs=1e-3)


def test_sense_of_all_samples_is_the_image(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT)
    study = import_module("self_supervised")
    kspace = lookalikes.centred_fft(lookalikes.measure(lookalikes.magnitude(0, 2, 32, 32), 3, 0))
    write_volume(tmp_path / "volume.h5", kspace, {}, np.ones(32, bool))
    assert study.score(tmp_path, partial(study.sense, weight=0.0))[0] > 60
