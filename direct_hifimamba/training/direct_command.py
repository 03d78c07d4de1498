"""The command `direct`, for any model; masks of `train` follow `--seed`, and it takes `--cosine-schedule`."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch
from direct import train as direct_train
from direct.cli import cli as direct_cli
from direct.common import subsample
from direct.engine import Engine
from direct.utils import communication
from torch.optim import Optimizer
from torch.utils.data import get_worker_info

from direct_hifimamba.plugin import register_data_sets
from direct_hifimamba.training.learning_rate import CosineSchedule

COSINE_OPTION = "--cosine-schedule"

_direct_setup_train = direct_train.setup_train
_direct_train = Engine.train
_direct_training_loop = Engine.training_loop
_direct_draw_mask = subsample.BaseMaskFunc.__call__

# Apart from PyTorch's own, which dropout uses too: models that are trained with one seed see the same masks.
_mask_generator = torch.Generator()


def _train_with_cosine(engine: Engine, optimizer: Optimizer, _: Any, *args: Any, **kwargs: Any) -> None:
    _direct_train(engine, optimizer, CosineSchedule(optimizer, engine.cfg.training), *args, **kwargs)


def _seeded_training_loop(engine: Engine, datasets: Any, start_iter: int, *args: Any, **kwargs: Any) -> None:
    # Neither does the initialisation of the model matter, nor does a resumed training repeat what it has seen.
    torch.manual_seed(torch.initial_seed() + start_iter)
    _mask_generator.manual_seed(torch.initial_seed())
    _direct_training_loop(engine, datasets, start_iter, *args, **kwargs)


def draw_seeded_mask(mask_function: subsample.BaseMaskFunc, *args: Any, seed: Any = None, **kwargs: Any) -> Any:
    """DIRECT's call of a mask function, with a seed where it has none; DIRECT asks the system for one then.

    Workers of a DataLoader, which it seeds itself, take theirs from PyTorch's generator. Those that are not forked
    (macOS; Python 3.14) draw as DIRECT does.
    """
    if seed is None:
        seed = int(torch.randint(2**31, (), generator=_mask_generator if get_worker_info() is None else None))
    return _direct_draw_mask(mask_function, *args, seed=seed, **kwargs)


def setup_train(takes_cosine: bool, *arguments: Any) -> None:
    """DIRECT's `setup_train`, which every rank runs for itself, with seeded masks, and a cosine schedule if wanted.

    Of several ranks every one would draw the same masks: they keep DIRECT's unseeded ones.
    """
    register_data_sets()  # other models than ours do not
    with ExitStack() as patches:
        if takes_cosine:
            patches.enter_context(mock.patch.object(Engine, "train", _train_with_cosine))
        if communication.get_world_size() == 1:
            patches.enter_context(mock.patch.object(Engine, "training_loop", _seeded_training_loop))
            patches.enter_context(mock.patch.object(subsample.BaseMaskFunc, "__call__", draw_seeded_mask))
        _direct_setup_train(*arguments)


def main(arguments: Sequence[str]) -> None:
    """Run `direct` with `arguments`, the first of which is the subcommand."""
    register_data_sets()
    takes_cosine = arguments[0] == "train" and COSINE_OPTION in arguments
    # DIRECT's parser takes its arguments from nowhere else.
    sys.argv[1:] = [argument for argument in arguments if not (takes_cosine and argument == COSINE_OPTION)]
    direct_train.setup_train = partial(setup_train, takes_cosine)
    direct_cli.main()
