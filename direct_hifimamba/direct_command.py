"""The command `direct`, whose `train` takes one option more: `--cosine-schedule`, for any model."""

import sys
from collections.abc import Sequence
from typing import Any

from direct import train as direct_train
from direct.cli import cli as direct_cli
from direct.engine import Engine
from torch.optim import Optimizer

from direct_hifimamba.learning_rate import CosineSchedule

COSINE_OPTION = "--cosine-schedule"

_setup_train = direct_train.setup_train
_engine_train = Engine.train


def _train_with_cosine(engine: Engine, optimizer: Optimizer, _: Any, *args: Any, **kwargs: Any) -> None:
    _engine_train(engine, optimizer, CosineSchedule(optimizer, engine.cfg.training), *args, **kwargs)


def setup_train_with_cosine(*arguments: Any) -> None:
    """DIRECT's `setup_train`, which every rank runs for itself, with :class:`CosineSchedule` for whatever model."""
    Engine.train = _train_with_cosine
    try:
        _setup_train(*arguments)
    finally:
        Engine.train = _engine_train


def main(arguments: Sequence[str]) -> None:
    """Run `direct` with `arguments`, the first of which is the subcommand."""
    takes_cosine = arguments[0] == "train" and COSINE_OPTION in arguments
    # DIRECT's parser takes its arguments from nowhere else.
    sys.argv[1:] = [argument for argument in arguments if not (takes_cosine and argument == COSINE_OPTION)]
    direct_train.setup_train = setup_train_with_cosine if takes_cosine else _setup_train
    direct_cli.main()
