"""The training loop: resumed, on several processes and in low precision, it trains what it trains without.

Run as a script under ``torch.distributed.run`` this file is one of the processes of the test on several.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rich
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from broker.assemble.lightcurve import assemble_light_curves
from broker.assemble.metadata import MODEL_FEATURES
from broker.errors import ConfigurationError
from broker.records import LightCurve
from broker.taxonomy import CLASS_NAMES
from training.config import FinetuneSettings, PlateauSettings, PretrainSettings, StageSettings, load_settings
from training.data import Labels, TrainingSet, to_device
from training.encoders.build import build_model
from training.encoders.trimodal import Trimodal
from training.finetune import Goal, finetune, subsets_loss
from training.loop import Checkpoints, Context, fit
from training.losses import trimodal_contrastive
from training.prepare import PreparedLightCurves
from training.pretrain import pretrain
from training.schedules import Judgement, one_cycle
from training.workers import Workers, join_workers

RUN = {"seed": 3, "settings": {"channels": (8, 16), "dropout": 0.1}}
TOY = StageSettings(epochs=4, batch_size=16, learning_rate=3e-2, weight_decay=0.0)
STAGE = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.01}
PRETRAIN = PretrainSettings(**STAGE)
PLATEAU = PlateauSettings(
    epochs=9, batch_size=8, learning_rate=1e-4, weight_decay=0.01, beta1=0.9, warmup_epochs=1, factor=0.5, patience=0,
    early_stop=3,
)  # fmt: skip
FINETUNE = FinetuneSettings(
    **STAGE, label_smoothing=0.03, class_balance=0.3, crop_share=0.5, spectrum_share=0.3, average_decay=0.9
)


class Interruption(Exception):  # noqa: N818, it is none of the code under test
    """Stands for whatever ends a run too early."""


def silent(_: str) -> None:
    pass


# A toy problem: a line through noise, seen through dropout so that torch's random numbers matter.

FEATURES = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32))
TARGET = FEATURES @ torch.tensor([1.0, -2.0, 0.5, 3.0])


def toy_model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Dropout(0.1), nn.BatchNorm1d(32), nn.Linear(32, 1))


def toy_loss(model: nn.Module) -> Callable[[NDArray[np.intp], np.random.Generator], Tensor]:
    def loss(chosen: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        noise = torch.from_numpy(rng.normal(0, 0.1, len(chosen)).astype(np.float32))
        return nn.functional.mse_loss(model(FEATURES[chosen])[:, 0].float(), TARGET[chosen] + noise)

    return loss


def fit_toy(
    checkpoints: Checkpoints | None = None,
    settings: StageSettings = TOY,
    report: Callable[[str], None] = silent,
    decay: float | None = 0.9,
    stop_at: int | None = None,
) -> nn.Module:
    """Train a toy model from its start; ``stop_at`` breaks off in the middle of an epoch, at that call of the loss."""
    model = toy_model()
    whole = toy_loss(model)
    calls = iter(range(1000))

    def loss(chosen: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        if next(calls) == stop_at:
            raise Interruption
        return whole(chosen, rng)

    return fit("toy", model, np.arange(80), settings, [3, 9], Context(Workers(), report, checkpoints), loss, decay)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# The real model on twenty-eight made-up stars, small enough for seconds.


@pytest.fixture(scope="module")
def stars() -> TrainingSet:
    return made_up_stars()


def made_up_stars(size: int = 28) -> TrainingSet:
    rng = np.random.default_rng(1)
    curves = []
    for i in range(size):
        time = 55000 + np.sort(rng.uniform(0, 60, 40))
        flux = (1e5 * (1 + 0.3 * np.sin(2 * np.pi * time / (0.4 + 0.05 * i)))).astype(np.float32)
        error, total, zero = np.full(40, 1e3, np.float32), np.zeros(40, np.float32), np.zeros(40, np.uint8)
        curves.append(LightCurve(time, flux + error * rng.normal(size=40).astype(np.float32), error, total, zero, zero))
    inputs = assemble_light_curves(curves)
    columns = {f.name: np.stack([getattr(inputs, f.name)] * 2) for f in dataclasses.fields(PreparedLightCurves)}
    columns["features"][1] += 0.1  # so that it matters which version is drawn
    names = np.array([CLASS_NAMES[i % 3] for i in range(size)], object)
    return TrainingSet(
        Labels.from_columns(names, np.full(size, "gold", object), np.zeros(size, bool)),
        PreparedLightCurves(**columns),
        rng.normal(size=(2, size, 3, 2575)).astype(np.float16),
        np.arange(size) % 4 > 0,
        rng.normal(size=(size, len(MODEL_FEATURES))).astype(np.float32),
        rng.random((size, len(MODEL_FEATURES))) < 0.8,
        np.arange(size) % 5 > 0,
    )


def new_model(name: str = "trifid") -> Trimodal:
    torch.manual_seed(11)
    return build_model(load_settings(name))


def train(model: Trimodal, stars: TrainingSet, context: Context) -> Trimodal:
    rows = np.arange(len(stars))
    pretrain(model, stars, rows, PRETRAIN, 3, context)
    labels = stars.labels
    return finetune(
        model, stars, labels, labels, rows, FINETUNE, 3, context, lambda average: f"training {average.training}"
    )


def test_the_schedule_is_torchs_one_cycle() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=57, pct_start=0.1)
    for step in range(57):
        group = optimizer.param_groups[0]
        assert one_cycle(step, 57) == pytest.approx((group["lr"], group["betas"][0]), rel=1e-9)
        optimizer.step()
        if step < 56:
            schedule.step()


@pytest.mark.parametrize("total", [1, 2, 9, 10, 11])
def test_the_schedule_of_a_short_training_starts_below_or_at_its_peak_and_falls(total: int) -> None:
    rates = [one_cycle(step, total)[0] for step in range(total)]
    assert max(rates) <= 1
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert total == 1 or rates[-1] == pytest.approx(1 / 25e4)


def test_the_loss_falls_and_each_epoch_has_one_line() -> None:
    lines: list[str] = []
    model = fit_toy(settings=TOY.model_copy(update={"epochs": 30}), report=lines.append, decay=None)
    assert [line.split(": loss ")[0] for line in lines] == [f"toy epoch {i}/30" for i in range(1, 31)]
    losses = [float(line.split(": loss ")[1]) for line in lines]
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        assert nn.functional.mse_loss(model.eval()(FEATURES)[:, 0], TARGET) < 0.1 * TARGET.var()


def test_steps_replace_epochs() -> None:
    lines: list[str] = []
    fit_toy(settings=TOY.model_copy(update={"steps": 7}), report=lines.append)  # epochs have 5 steps
    assert [line.split(":")[0] for line in lines] == ["toy epoch 1/2", "toy epoch 2/2"]
    exact = fit_toy(settings=TOY.model_copy(update={"steps": 20}))
    assert_same_weights(exact, fit_toy())


def test_the_average_is_an_exponential_one_of_the_weights() -> None:
    model = toy_model()
    whole = toy_loss(model)
    seen: list[Tensor] = []

    def loss(chosen: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        seen.append(model[0].weight.detach().clone())  # before each step
        return whole(chosen, rng)

    average = fit("toy", model, np.arange(80), TOY, [3, 9], Context(Workers(), silent), loss, 0.5)
    expected = seen[0]
    for step, weight in enumerate([*seen[1:], model[0].weight.detach()]):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(average[0].weight, expected, atol=1e-6)
    assert average[3].num_batches_tracked == model[3].num_batches_tracked == 20


@pytest.mark.parametrize("stop_at", [3, 5, 13])
def test_a_resumed_training_ends_in_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole = fit_toy()
    with pytest.raises(Interruption):
        fit_toy(Checkpoints(tmp_path, RUN), stop_at=stop_at)
    torch.manual_seed(stop_at)  # whatever the process did in between
    lines: list[str] = []
    resumed = fit_toy(Checkpoints(tmp_path, RUN, resume=True), report=lines.append)
    assert_same_weights(whole, resumed)
    done = stop_at // 5
    assert len(lines) == 4 - done + (done > 0)
    assert (lines[0] == f"toy: resumed after epoch {done}/4") == (done > 0)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-toy.safetensors"]
    again = fit_toy(Checkpoints(tmp_path, RUN, resume=True), stop_at=0)  # nothing is left to be done
    assert_same_weights(whole, again)


def test_both_stages_of_the_real_model_resume_bit_for_bit(tmp_path: Path, stars: TrainingSet) -> None:
    lines: list[str] = []
    whole = train(new_model(), stars, Context(Workers(), lines.append))
    assert [line.split(":")[0] for line in lines] == [
        f"{stage} epoch {i}/3" for stage in ("pretrain", "finetune") for i in (1, 2, 3)
    ]
    assert lines[-1].endswith("; training False")
    for stop in ("pretrain epoch 2", "finetune epoch 1"):

        def report(line: str, stop: str = stop) -> None:
            if line.startswith(stop):
                raise Interruption

        with pytest.raises(Interruption):
            train(new_model(), stars, Context(Workers(), report, Checkpoints(tmp_path, RUN, resume=True)))
    resumed = train(new_model(), stars, Context(Workers(), silent, Checkpoints(tmp_path, RUN, resume=True)))
    assert_same_weights(whole, resumed)
    assert not torch.equal(whole.log_scale, new_model().log_scale)


def test_without_resume_checkpoints_are_not_read_and_can_be_cleared(tmp_path: Path) -> None:
    fit_toy(Checkpoints(tmp_path, RUN))
    with pytest.raises(Interruption):
        fit_toy(Checkpoints(tmp_path, RUN), stop_at=0)
    (tmp_path / "model.safetensors").touch()
    Checkpoints(tmp_path, RUN).clear()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    path.write_text("not a checkpoint")


def plain_weights(path: Path) -> None:
    save_file(toy_model().state_dict(), path)


def lose_a_tensor(path: Path) -> None:
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    del tensors["model/0.weight"]
    save_file(tensors, path, header)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "cannot resume from"),
        (overwrite, "cannot resume from"),
        (plain_weights, "is no checkpoint that this version"),
        (lose_a_tensor, "cannot resume from.*0.weight"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    checkpoints = Checkpoints(tmp_path, RUN, resume=True)
    fit_toy(checkpoints)
    damage(checkpoints.path("toy"))
    with pytest.raises(ConfigurationError, match=f"(?s){reason}"):
        fit_toy(checkpoints)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    fit_toy(Checkpoints(tmp_path, RUN))
    with pytest.raises(ConfigurationError, match=r"another run: it differs in seed; .*train without --resume"):
        fit_toy(Checkpoints(tmp_path, {**RUN, "seed": 4}, resume=True))
    with pytest.raises(ConfigurationError, match=r"differs in steps;"):
        fit_toy(Checkpoints(tmp_path, RUN, resume=True), TOY.model_copy(update={"epochs": 5}))
    wider = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Dropout(0.1), nn.BatchNorm1d(64), nn.Linear(64, 1))
    context = Context(Workers(), silent, Checkpoints(tmp_path, RUN, resume=True))
    with pytest.raises(ConfigurationError, match=r"(?s)cannot resume from.*size mismatch"):
        fit("toy", wider, np.arange(80), TOY, [3, 9], context, toy_loss(wider), 0.9)


def test_batches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="80 objects do not fill a batch of 81"):
        fit_toy(settings=TOY.model_copy(update={"batch_size": 81}))
    with pytest.raises(ConfigurationError, match="batches of 16 do not divide by 3 processes"):
        fit("toy", toy_model(), np.arange(80), TOY, [0], Context(Workers(0, 3), silent), toy_loss(toy_model()))


@pytest.mark.parametrize("name", ["trifid", "astrom3"])
def test_bfloat16_trains_nearly_the_same(stars: TrainingSet, name: str) -> None:
    losses, models = {}, {}
    for precision in ("float32", "bfloat16"):
        settings = {"precision": precision, "steps": 2}
        lines: list[str] = []
        model, rows, context = new_model(name), np.arange(len(stars)), Context(Workers(), lines.append)
        pretrain(model, stars, rows, PRETRAIN.model_copy(update=settings), 3, context)
        finetune(
            model,
            stars,
            stars.labels,
            stars.labels,
            rows,
            FINETUNE.model_copy(update=settings),
            3,
            context,
            lambda _: "",
        )
        losses[precision] = [float(line.split(": loss ")[1].split(";")[0]) for line in lines]
        models[precision] = nn.utils.parameters_to_vector(model.parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert models["bfloat16"].dtype == torch.float32
    assert not torch.equal(models["bfloat16"], models["float32"])


def test_a_batch_moves_as_a_whole(stars: TrainingSet) -> None:
    moved = to_device(stars.batch(np.arange(3)), torch.device("meta"))
    assert {getattr(moved, field.name).device.type for field in dataclasses.fields(moved)} == {"meta"}


def test_the_progress_bar_is_for_terminals_alone() -> None:
    shown = {}
    try:
        for terminal in (True, False):
            rich.reconfigure(file=io.StringIO(), force_terminal=terminal, width=100)
            fit_toy()
            shown[terminal] = rich.get_console().file.getvalue()  # type: ignore[attr-defined]
    finally:
        rich.reconfigure()
    assert "20/20" in shown[True]
    assert "steps/s" in shown[True]
    assert re.search(r"loss \d+\.\d{3}", shown[True])
    assert shown[False] == ""


# Several processes.


def losses_without_chance(
    model: Trimodal, stars: TrainingSet, workers: Workers
) -> dict[str, Callable[[NDArray[np.intp]], Tensor]]:
    """The losses of both stages with all chance taken out, so that processes cannot differ by it."""
    labels = stars.labels
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def contrastive(chosen: NDArray[np.intp]) -> Tensor:
        batch = stars.batch(chosen[workers.own])
        present = workers.gather(batch.present.to(torch.uint8)).bool()
        return trimodal_contrastive(workers.gather(model.encode(batch)), present, model.log_scale)

    def subsets(chosen: NDArray[np.intp]) -> Tensor:
        own = chosen[workers.own]
        target, weight = torch.from_numpy(labels.target[own]), torch.from_numpy(1.0 + own % 3).float()
        goal = Goal(target, torch.from_numpy(labels.confusions[labels.naming[own]]), weight)
        # One spectrum in the batch: all processes but the first have none.
        return subsets_loss(model, stars.batch(own), goal, goal, 1 - min(workers.rank, 1), 0.1, workers)

    return {"contrastive": contrastive, "subsets": subsets}


def train_without_chance(workers: Workers) -> dict[str, Tensor]:
    """The losses' gradients at the model's start, and the weights after some training with both."""
    stars, model = made_up_stars(), new_model()
    losses = losses_without_chance(model, stars, workers)
    results = {}
    for name, loss in losses.items():
        model.zero_grad()
        loss(np.arange(8)).backward()
        workers.average([p.grad for p in model.parameters() if p.grad is not None])
        results |= {f"{name}/{k}": p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    context, rows = Context(workers, print), np.arange(len(stars))
    pretrain(model, stars, rows, PRETRAIN, 3, context)
    average = fit(
        "finetune", model, rows, FINETUNE, [3], context, lambda chosen, _: losses["subsets"](chosen), average_decay=0.9
    )
    results |= {f"weights/{k}": v for k, v in average.state_dict().items()}
    subsets = losses_without_chance(average, stars, workers)["subsets"]
    # Only the first process judges; the others have its rate, its end after five epochs and its best one, the second.
    told = iter([(3.0, 0.1), (2.0, 0.3), (2.5, 0.2), (2.5, 0.2), (2.5, 0.2)])
    best = fit(
        "plateau", average, rows, PLATEAU, [4], context, lambda chosen, _: subsets(chosen),
        judge=lambda _: Judgement(*next(told)) if workers.rank == 0 else Judgement(math.nan, math.nan),
    )  # fmt: skip
    return results | {f"best/{k}": v for k, v in best.state_dict().items()}


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    alone = train_without_chance(Workers())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run(
        [*command, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first.keys() == alone.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert done.stdout.count("pretrain epoch 3/3") == 1
    assert done.stdout.count("plateau: stopped early after epoch 5, kept is epoch 2") == 1
    start = new_model().state_dict()
    moved = apart = 0.0
    for name, value in alone.items():
        part, _, key = name.partition("/")
        if part in ("weights", "best"):
            moved += (value - start[key]).square().sum().item()
            apart += (value - first[name]).square().sum().item()
        else:
            assert (value - first[name]).norm() <= 1e-4 * value.norm() + 1e-7, name
    # Adam divides by the gradient's size, and so makes much of what rounding makes of gradients near zero.
    assert apart**0.5 < 0.02 * moved**0.5


if __name__ == "__main__":
    with join_workers() as found:
        with found.in_turn():
            assert (Path(sys.argv[1]) / "0.turn").exists() == (found.rank > 0)
            (Path(sys.argv[1]) / f"{found.rank}.turn").touch()
        trained = train_without_chance(found)
    save_file(trained, Path(sys.argv[1]) / f"{found.rank}.safetensors")
