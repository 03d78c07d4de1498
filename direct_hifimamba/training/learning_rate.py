"""Cosine learning-rate schedules. DIRECT has one but no key for it: it always trains with warm-up and steps."""

import math
from typing import Any, ClassVar

from direct.config.defaults import TrainingConfig
from direct.data.lr_scheduler import WarmupCosineLR
from torch.optim import Optimizer


class CosineSchedule(WarmupCosineLR):
    """Learning-rate schedule of DIRECT's warm-up and half a cosine, which ends at zero.

    In iteration i of n the learning rate is ``lr * warm_up(i) * (1 + cos(pi * i / n)) / 2``, where ``warm_up`` rises
    linearly from 1/3 to 1 in the first `lr_warmup_iter` iterations.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rates are the maxima of the schedule.
    training : TrainingConfig
        `num_iterations` and `lr_warmup_iter` are used.
    """

    def __init__(self, optimizer: Optimizer, training: TrainingConfig) -> None:
        super().__init__(
            optimizer,
            max_iters=training.num_iterations,
            warmup_factor=1 / 3,
            warmup_iterations=training.lr_warmup_iter,
        )

    # DIRECT's schedule loads every attribute from a checkpoint, even of another schedule. With an endless warm-up of an
    # unknown method it raises an error instead of continuing with a mixture of both schedules.
    _FOREIGN: ClassVar = {"warmup_method": "that of the cosine schedule", "warmup_iterations": math.inf}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, from which DIRECT's own schedule refuses to resume."""
        return super().state_dict() | self._FOREIGN

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint.

        Raises
        ------
        ValueError
            If the checkpoint was written with another schedule or number of iterations.
        """
        if state_dict.get("warmup_method") != self._FOREIGN["warmup_method"]:
            raise ValueError(
                "The checkpoint was trained with another learning-rate schedule, such as DIRECT's own; resume with "
                "that one, or start a new experiment with --initialization-checkpoint."
            )
        if state_dict["max_iters"] != self.max_iters:
            raise ValueError(
                f"training.num_iterations is {self.max_iters}, but the checkpoint's cosine schedule ends at iteration "
                f"{state_dict['max_iters']}; resume with that, or start a new experiment with "
                "--initialization-checkpoint."
            )
        own = {key: getattr(self, key) for key in self._FOREIGN}
        super().load_state_dict(state_dict | own)


class PaperSchedule(CosineSchedule):
    """Learning-rate schedule of the paper's authors: half a cosine that ends before the training does.

    In iteration i of n the learning rate is ``lr * (i + 1) / w`` during the warm-up of w = `lr_warmup_iter` iterations,
    and ``lr * (1 + cos(pi * (i - w) / (0.72 * n - w))) / 2`` afterwards. It is zero at 72 % of the training and then
    rises again: with a warm-up of 5 % to 0.37 of its maximum. The authors' scripts train for 100 epochs with a cosine
    of 72.
    """

    LENGTH = 0.72  #: Where the cosine reaches zero, as a fraction of the training.
    _FOREIGN: ClassVar = {"warmup_method": "that of the paper's schedule", "warmup_iterations": math.inf}

    def get_lr(self) -> list[float]:
        """Return the learning rates of this iteration."""
        iteration, warm_up = self.last_epoch, self.warmup_iterations
        factor = (iteration + 1) / warm_up if iteration < warm_up else 1.0
        if iteration > warm_up:
            factor = (1 + math.cos(math.pi * (iteration - warm_up) / (self.LENGTH * self.max_iters - warm_up))) / 2
        return [base_lr * factor for base_lr in self.base_lrs]


SCHEDULES = {"cosine": CosineSchedule, "paper": PaperSchedule}
"""Schedules by the value of `model.learning_rate_schedule`; DIRECT's own is "steps"."""
