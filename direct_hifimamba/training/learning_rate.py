"""Cosine learning rates, for which DIRECT has a schedule but no key: it always trains with warm-up and steps."""

import math
from typing import Any, ClassVar

from direct.config.defaults import TrainingConfig
from direct.data.lr_scheduler import WarmupCosineLR
from torch.optim import Optimizer


class CosineSchedule(WarmupCosineLR):
    """Warm-up as in DIRECT's own schedule, and half a cosine to zero at the last iteration.

    In iteration i of n the learning rate is ``lr * warm_up(i) * (1 + cos(pi * i / n)) / 2``, where ``warm_up`` rises
    linearly from 1/3 to 1 in the first `lr_warmup_iter` iterations.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rates are the highest ones.
    training : TrainingConfig
        Of which `num_iterations` and `lr_warmup_iter` are used.
    """

    def __init__(self, optimizer: Optimizer, training: TrainingConfig) -> None:
        super().__init__(
            optimizer,
            max_iters=training.num_iterations,
            warmup_factor=1 / 3,
            warmup_iterations=training.lr_warmup_iter,
        )

    # A schedule of DIRECT takes over every attribute in a checkpoint, whichever schedule wrote it. A warm-up that never
    # ends and of a method that it does not know is an error there instead of a run with half of each.
    _FOREIGN: ClassVar = {"warmup_method": "that of the cosine schedule", "warmup_iterations": math.inf}

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, with which DIRECT's own schedule refuses to resume."""
        return super().state_dict() | self._FOREIGN

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint.

        Raises
        ------
        ValueError
            If the checkpoint is of another schedule.
        """
        if state_dict.get("warmup_method") != self._FOREIGN["warmup_method"]:
            raise ValueError(
                "The checkpoint was trained with DIRECT's own learning rate schedule; resume with that one, or start a "
                "new experiment with --initialization-checkpoint."
            )
        if state_dict["max_iters"] != self.max_iters:
            raise ValueError(
                f"training.num_iterations is {self.max_iters}, but the checkpoint's cosine schedule ends at iteration "
                f"{state_dict['max_iters']}; resume with that, or start a new experiment with "
                "--initialization-checkpoint."
            )
        own = {key: getattr(self, key) for key in self._FOREIGN}
        super().load_state_dict(state_dict | own)
