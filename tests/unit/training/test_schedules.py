"""AstroM3's schedule: what it does to the rate, when it ends, what it keeps, and that it survives an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from broker.errors import ConfigurationError
from tests.unit.training.test_loop import (
    FEATURES,
    RUN,
    TARGET,
    TOY,
    Interruption,
    assert_same_weights,
    silent,
    toy_loss,
    toy_model,
)
from training.config import AstroM3RecipeSettings, PlateauSettings, load_settings
from training.loop import Checkpoints, Context, fit
from training.schedules import Judgement, OneCycle, Plateau
from training.workers import Workers

SMALL = PlateauSettings(
    epochs=20, batch_size=16, learning_rate=1.0, weight_decay=0.0, beta1=0.9, warmup_epochs=2, factor=0.5, patience=1,
    early_stop=3,
)  # fmt: skip
LOSSES = (6.0, 6.0, 5.0, 4.0, 4.5, 4.2, 3.9, 3.9, 4.0, 4.0)
RATES = (1e-5, 0.500005, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25)
"""By hand, of each epoch: two of warm-up; two worse losses after the fourth epoch, so half the rate after the sixth;
two no better than the seventh, so half again after the ninth; the tenth is the third, and the last."""


def plateau(settings: PlateauSettings = SMALL) -> Plateau:
    made = Plateau([nn.Parameter(torch.zeros(1))], settings)
    made.optimizer.step()  # torch warns of schedulers that go before the optimiser
    return made


def after(schedule: Plateau, losses: Sequence[float]) -> list[float]:
    """The rates of the epochs that end in ``losses``."""
    rates = []
    for loss in losses:
        rates.append(schedule.rate)
        schedule.after_epoch(Judgement(loss, 0.0))
    return rates


def test_the_rate_rises_then_falls_where_validation_stands_still() -> None:
    schedule = plateau()
    assert after(schedule, LOSSES[:9]) == pytest.approx(RATES[:9], rel=1e-9)
    assert schedule.rate == pytest.approx(RATES[9])
    assert not schedule.finished
    schedule.after_epoch(Judgement(LOSSES[9], 0.0))
    assert schedule.finished


def test_astrom3s_pre_training_by_hand() -> None:
    settings = load_settings("astrom3")
    assert isinstance(settings, AstroM3RecipeSettings)
    schedule, peak = plateau(settings.pretrain), 0.0039210319036872545
    falling = [10.0 - epoch for epoch in range(12)]
    rates = after(schedule, [*falling, *[5.0] * 5])
    # Warm-up: epoch k + 1 has 1e-5 and k tenths of the rest.
    assert rates[:10] == pytest.approx([peak * (1e-5 + (1 - 1e-5) * k / 10) for k in range(10)], rel=1e-9)
    # The 16th epoch is the fourth that is no better than the twelfth: more than the patience of three.
    assert rates[10:16] == pytest.approx([peak] * 6, rel=1e-9)
    assert rates[16] == pytest.approx(peak * 0.1125080808385063, rel=1e-9)
    assert not schedule.finished
    schedule.after_epoch(Judgement(5.0, 0.0))  # the sixth
    assert schedule.finished


def test_the_best_epoch_is_that_of_the_best_accuracy_and_the_end_that_of_the_loss() -> None:
    schedule = plateau()
    found = [(3.0, 0.2), (2.0, 0.1), (2.5, 0.3), (2.6, 0.3), (float("nan"), 0.0)]
    assert [schedule.after_epoch(Judgement(*one)) for one in found] == [True, False, True, False, False]
    assert schedule.best_epoch == 3
    assert schedule.finished  # three epochs without a loss below 2


def test_without_warm_up_the_first_epoch_has_the_whole_rate() -> None:
    assert after(plateau(SMALL.model_copy(update={"warmup_epochs": 0})), (2.0, 3.0, 3.0, 3.0)) == [1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("stop", range(1, 10))
def test_the_state_goes_through_json(stop: int) -> None:
    first = plateau()
    rates = after(first, LOSSES[:stop])
    second = plateau()
    second.load(json.loads(json.dumps(first.state())))
    assert rates + after(second, LOSSES[stop:]) == pytest.approx(RATES, rel=1e-9)
    assert second.finished
    with pytest.raises(KeyError):
        plateau().load({})


def test_the_weight_decay_is_adams_and_not_adamws() -> None:
    weight = nn.Parameter(torch.full((1,), 2.0))
    decay = {"weight_decay": 0.1, "learning_rate": 0.01}
    weight.grad = torch.zeros(1)
    Plateau([weight], SMALL.model_copy(update={**decay, "warmup_epochs": 0})).optimizer.step()
    # The decay is a gradient like any other, and Adam's first step is as large as the rate whatever the gradient.
    assert weight.item() == pytest.approx(2.0 - 0.01, rel=1e-6)
    with torch.no_grad():
        weight.fill_(2.0)
    OneCycle([weight], TOY.model_copy(update=decay), 10).optimizer.step()
    assert weight.item() == pytest.approx(2.0 - 0.01 * 0.1 * 2.0, rel=1e-6)


# In the loop.

REAL = SMALL.model_copy(update={"learning_rate": 0.1, "patience": 0, "early_stop": 6})
SHORT = REAL.model_copy(update={"early_stop": 4})


def fit_judged(
    judgements: Iterator[Judgement] | None = None,
    checkpoints: Checkpoints | None = None,
    settings: PlateauSettings = REAL,
    lines: list[str] | None = None,
    stop_at: int | None = None,
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """The toy model of the best epoch, and the weights after each; judged as told, or by what it really does.

    ``stop_at`` breaks off in the middle of an epoch, at that call of the loss; five calls are an epoch.
    """
    model = toy_model()
    whole, calls, seen = toy_loss(model), iter(range(1000)), []

    def loss(chosen: np.ndarray[tuple[int], np.dtype[np.intp]], rng: np.random.Generator) -> Tensor:
        if next(calls) == stop_at:
            raise Interruption
        return whole(chosen, rng)

    def judge(candidate: nn.Module) -> Judgement:
        assert not candidate.training
        seen.append({name: value.clone() for name, value in candidate.state_dict().items()})
        if judgements is not None:
            return next(judgements)
        error = nn.functional.mse_loss(candidate(FEATURES)[:, 0], TARGET).item()
        return Judgement(error, -error)

    report = silent if lines is None else lines.append
    context = Context(Workers(), report, checkpoints)
    return fit("toy", model, np.arange(80), settings, [3, 9], context, loss, judge=judge), seen


def test_six_epochs_without_improvement_end_the_stage_and_the_best_epoch_is_returned() -> None:
    losses = (5.0, 4.0, 3.0, *[3.5] * 17)
    accuracies = (0.1, 0.3, 0.2, 0.2, 0.6, *[0.5] * 15)
    lines: list[str] = []
    best, seen = fit_judged(map(Judgement, losses, accuracies), lines=lines)
    assert len(seen) == 9
    assert lines[-1] == "toy: stopped early after epoch 9, kept is epoch 5"
    assert [line.split(":")[0] for line in lines[:-1]] == [f"toy epoch {i}/20" for i in range(1, 10)]
    assert lines[1].endswith(", rate 5.00e-02; validation loss 4.000, accuracy 0.3000")
    assert not best.training
    assert [name for name, value in best.state_dict().items() if not torch.equal(value, seen[4][name])] == []
    assert not torch.equal(best.state_dict()["0.weight"], seen[8]["0.weight"])


def test_a_stage_that_improves_to_the_end_has_all_its_epochs() -> None:
    falling = (Judgement(1 / epoch, epoch / 20) for epoch in range(1, 21))
    lines: list[str] = []
    _, seen = fit_judged(falling, lines=lines)
    assert len(seen) == 20
    assert lines[-1] == "toy: done after epoch 20, kept is epoch 20"


@pytest.mark.parametrize("stop_at", [3, 13, 27, 41, 73])
def test_a_resumed_stage_ends_in_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    told: list[str] = []
    whole, seen = fit_judged(settings=SHORT, lines=told)
    epochs = len(seen)
    # Real losses: the rate is lowered between the interruptions, and the stage ends early.
    rates = [line.split("rate ")[1].split(";")[0] for line in told[:-1]]
    assert len(set(rates[2:8])) > 1
    assert len(set(rates[8:])) > 1
    assert epochs < 20
    with pytest.raises(Interruption):
        fit_judged(settings=SHORT, checkpoints=Checkpoints(tmp_path, RUN), stop_at=stop_at)
    lines: list[str] = []
    resumed, later = fit_judged(settings=SHORT, checkpoints=Checkpoints(tmp_path, RUN, resume=True), lines=lines)
    assert_same_weights(whole, resumed)
    assert len(later) == epochs - stop_at // 5
    assert [line for line in lines if "resumed" not in line] == told[stop_at // 5 :]
    again, nothing = fit_judged(settings=SHORT, checkpoints=Checkpoints(tmp_path, RUN, resume=True), stop_at=0)
    assert_same_weights(whole, again)
    assert nothing == []


def test_a_checkpoint_without_the_schedule_is_refused(tmp_path: Path) -> None:
    context = Context(Workers(), silent, Checkpoints(tmp_path, RUN))
    fit(
        "toy", toy_model(), np.arange(80), TOY.model_copy(update={"epochs": 20}), [3, 9], context, toy_loss(toy_model())
    )
    with pytest.raises(ConfigurationError, match=r"(?s)cannot resume from .*train without --resume"):
        fit_judged(checkpoints=Checkpoints(tmp_path, RUN, resume=True))


@pytest.mark.parametrize("clip", [0.5, None])
def test_the_gradient_is_cut_where_the_settings_say_so(clip: float | None) -> None:
    model = toy_model()
    settings = SMALL.model_copy(update={"steps": 1, "clip_norm": clip})
    loss = toy_loss(model)
    fit(
        "toy", model, np.arange(80), settings, [0], Context(Workers(), silent),
        lambda chosen, rng: 1000 * loss(chosen, rng), judge=lambda _: Judgement(0.0, 0.0),
    )  # fmt: skip
    norm = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).norm().item()
    assert norm == pytest.approx(0.5, rel=1e-4) if clip else norm > 100


def test_a_plateau_needs_a_judge() -> None:
    with pytest.raises(TypeError, match="needs a judge"):
        fit("toy", toy_model(), np.arange(80), SMALL, [0], Context(Workers(), silent), toy_loss(toy_model()))
