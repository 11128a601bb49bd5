"""Optimiser and learning rate of a stage: one cycle of AdamW, or AstroM3's Adam, lowered where validation stands still.

A schedule has all that a stage keeps beside its weights, so that what it keeps can go into a checkpoint.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau

from training.config import PlateauSettings, StageSettings

WARMUP_START = 1e-5
"""Share of the learning rate that AstroM3's first epoch has."""


class Judgement(NamedTuple):
    """What validation says of a model after an epoch."""

    loss: float
    """By which the rate is lowered and the stage ended."""
    accuracy: float
    """By which the best epoch is known."""


def one_cycle(step: int, total: int) -> tuple[float, float]:
    """Share of the peak learning rate, and AdamW's first beta, of step ``step`` of ``total``, counted from 0.

    The one-cycle policy (Smith & Topin 2019, arXiv 1708.07120) with cosines: over the first tenth the rate rises
    from 1/25, then it falls to 1/250000, and the momentum goes the other way between 0.85 and 0.95. The same
    numbers as torch's ``OneCycleLR``, but a function of the step alone, so that there is no state to keep, and
    defined for any number of steps.
    """
    peak = max(0.1 * total - 1, 0.0)
    rising = step < peak
    way = step / peak if rising else (step - peak) / max(total - 1 - peak, 1.0)
    up = 0.5 * (1 - math.cos(math.pi * way)) if rising else 0.5 * (1 + math.cos(math.pi * way))
    low = 1 / 25 if rising else 1 / 25e4
    return low + (1 - low) * up, 0.95 - 0.1 * up


class Schedule(ABC):
    """An optimiser and what sets its learning rate."""

    optimizer: Optimizer
    clip_norm: float | None
    """To which the norm of a step's gradient is cut; None where it is not."""
    finished: bool = False
    """Whether the stage ends before its last epoch."""

    @abstractmethod
    def before_step(self, step: int) -> None:
        """Set the optimiser for the step ``step`` of the whole stage, counted from 0."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the optimiser's own state, as JSON can hold it."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to what ``state`` returned; KeyError where it lacks something."""


class OneCycle(Schedule):
    """AdamW with ``one_cycle``."""

    clip_norm = 1.0

    def __init__(self, parameters: Sequence[nn.Parameter], settings: StageSettings, total: int) -> None:
        """``total`` is the number of the stage's steps."""
        self._peak, self._total = settings.learning_rate, total
        self.optimizer = AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)

    def before_step(self, step: int) -> None:
        """As ``Schedule``."""
        rate, momentum = one_cycle(step, self._total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self._peak
            group["betas"] = (momentum, group["betas"][1])

    def state(self) -> dict[str, Any]:
        """Nothing: the step says all."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """As ``Schedule``."""


class Plateau(Schedule):
    """AstroM3's schedule (src/trainer.py and src/utils.py of github.com/MeriDK/AstroM3).

    Adam with L2 weight decay. The rate rises linearly over the first epochs, then it is lowered by a factor whenever
    the validation loss has stood still for more than some epochs. The stage ends when that loss has not fallen for some
    epochs, those of the rise among them, and the weights of the epoch with the best validation accuracy are kept.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: PlateauSettings) -> None:
        self.clip_norm = settings.clip_norm
        self.optimizer = Adam(
            parameters, lr=settings.learning_rate, betas=(settings.beta1, 0.999), weight_decay=settings.weight_decay,
            fused=True,
        )  # fmt: skip
        self._early_stop, self._warmup_epochs = settings.early_stop, settings.warmup_epochs
        self._plateau = ReduceLROnPlateau(self.optimizer, factor=settings.factor, patience=settings.patience)
        # Made with no epochs to rise over, LinearLR would divide by them.
        self._warmup = (
            LinearLR(self.optimizer, start_factor=WARMUP_START, total_iters=settings.warmup_epochs)
            if settings.warmup_epochs
            else None
        )
        self._epochs = self._stale = self.best_epoch = 0
        self._best_loss, self._best_accuracy = math.inf, -math.inf

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def before_step(self, step: int) -> None:
        """Nothing: the rate changes between epochs."""

    def after_epoch(self, judgement: Judgement) -> bool:
        """Set the rate of the next epoch, or ``finished``; returns whether this epoch's weights are the best so far."""
        if self._warmup is not None and self._epochs < self._warmup_epochs:
            self._warmup.step()
        else:
            self._plateau.step(judgement.loss)
        self._epochs += 1
        self._stale = 0 if judgement.loss < self._best_loss else self._stale + 1
        self._best_loss = min(self._best_loss, judgement.loss)
        self.finished = self._stale >= self._early_stop
        best = judgement.accuracy > self._best_accuracy
        if best:
            self.best_epoch, self._best_accuracy = self._epochs, judgement.accuracy
        return best

    def state(self) -> dict[str, Any]:
        """As ``Schedule``."""
        return {
            "rate": self.rate,
            "epochs": self._epochs,
            "stale": self._stale,
            "best_epoch": self.best_epoch,
            "best_loss": self._best_loss,
            "best_accuracy": self._best_accuracy,
            "plateau": self._plateau.state_dict(),
            "warmup": self._warmup.state_dict() if self._warmup is not None else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """As ``Schedule``."""
        for group in self.optimizer.param_groups:
            group["lr"] = state["rate"]
        self._epochs, self._stale, self.best_epoch = state["epochs"], state["stale"], state["best_epoch"]
        self._best_loss, self._best_accuracy = state["best_loss"], state["best_accuracy"]
        self._plateau.load_state_dict(state["plateau"])
        if self._warmup is not None:
            self._warmup.load_state_dict(state["warmup"])
        self.finished = self._stale >= self._early_stop
