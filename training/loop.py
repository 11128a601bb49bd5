"""The loop that all training stages share: precision, steps, average or best epoch, checkpoints.

Nothing here depends on the time or on the number of processes: a stage's steps, its batches and their order come
from the settings and the seed alone, and each process works on its own share of every batch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import rich
import torch
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from broker.errors import ConfigurationError
from training.config import PlateauSettings, StageSettings
from training.schedules import Judgement, OneCycle, Plateau, Schedule
from training.workers import Workers

CHECKPOINT_FORMAT = 1
SHOW_EVERY = 10
"""Steps between two looks at the loss for the progress bar; each look makes the processor wait for the GPU."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run, a file for each stage, replaced after each epoch."""

    folder: Path
    run: Mapping[str, object]
    """What makes the run what it is, as JSON can hold it: a checkpoint in which it differs is refused."""
    resume: bool = False
    """Whether to go on from what is there."""

    def path(self, stage: str) -> Path:
        """Where the checkpoint of ``stage`` is kept."""
        return self.folder / f"checkpoint-{stage}.safetensors"

    def clear(self) -> None:
        """Remove all checkpoints: those of an earlier run must not be taken for this one's."""
        for path in self.folder.glob("checkpoint-*.safetensors"):
            path.unlink()


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage needs of the run around it."""

    workers: Workers
    report: Callable[[str], None]
    """Takes one line an epoch, in the first process only."""
    checkpoints: Checkpoints | None = None


@dataclass(slots=True)
class _State:
    """All that a stage changes, and so all that its checkpoint holds."""

    modules: dict[str, nn.Module]
    """The model, and its average or its best epoch where one is kept."""
    schedule: Schedule
    rng: np.random.Generator
    epochs: int = 0
    """Epochs that are done."""

    def save(self, path: Path, run: Mapping[str, object]) -> None:
        """Write one safetensors file; a reader sees the old file or the new one, never a part."""
        tensors = {f"{part}/{k}": v for part, m in self.modules.items() for k, v in m.state_dict().items()}
        for name, parameter in self.modules["model"].named_parameters():
            for key, value in self.schedule.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        header = {
            "format": CHECKPOINT_FORMAT,
            "run": run,
            "epochs": self.epochs,
            "rng": self.rng.bit_generator.state,
            "schedule": self.schedule.state(),
        }
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, {"checkpoint": json.dumps(header)})
        partial.replace(path)

    def load(self, path: Path, run: Mapping[str, object]) -> None:
        """Go back to the state in ``path``; ConfigurationError if it is none, or one of another run or model."""
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
                if header.get("format") != CHECKPOINT_FORMAT:
                    raise ConfigurationError(f"{path} is no checkpoint that this version of Trifid reads")
                differing = [k for k, v in json.loads(json.dumps(run)).items() if header["run"].get(k) != v]
                if differing:
                    raise ConfigurationError(
                        f"{path} is of another run: it differs in {', '.join(differing)}; "
                        "restore the settings, or train without --resume to start again"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            for part, module in self.modules.items():
                prefix = f"{part}/"
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            self._load_optimizer(tensors)
            self.rng.bit_generator.state = header["rng"]
            self.schedule.load(header.get("schedule", {}))
            self.epochs = header["epochs"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"cannot resume from {path}: {error}; train without --resume to start again"
            ) from error

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.modules["model"].named_parameters())
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                parameter_name, _, key = rest.rpartition("/")
                parameter = parameters[parameter_name]
                self.schedule.optimizer.state[parameter][key] = value.to(parameter.device)


class _StepsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} steps/s" if speed else "")


def fit(
    stage: str,
    model: Model,
    rows: NDArray[np.intp],
    settings: StageSettings,
    seed: Sequence[int],
    context: Context,
    loss: Callable[[NDArray[np.intp], np.random.Generator], Tensor],
    average_decay: float | None = None,
    validate: Callable[[Model], str] | None = None,
    judge: Callable[[Model], Judgement] | None = None,
) -> Model:
    """Train ``model`` in place on the workers' device; returns it, the average of its weights or its best epoch's.

    ``loss`` takes the rows of a whole batch, the same in all processes, and the generator of the stage's random
    numbers, from which all processes have to draw the same; it computes the loss on the rows of
    ``workers.own``, so that the processes' average is the loss of the whole batch. It draws dropout and the like
    from torch, whose seed is drawn anew in each epoch from that generator, another one for each process:
    its state is all the randomness that a checkpoint has to hold, whatever the device and however many the processes.

    With ``average_decay`` an exponential moving average of the weights is kept and returned, and ``validate`` of
    it added to each epoch's line; without, ``validate`` sees the model itself. Settings with a plateau need ``judge``
    instead, which is asked after each epoch, in the first process only: the best epoch is returned, while the model
    itself is left at the last. With checkpoints in ``context``, one is written after each epoch, and if they are to be
    resumed, training goes on from there; on one CPU the weights are the same, bit for bit, as without the
    interruption. Raises ConfigurationError if there are fewer rows than one batch, batches that do not divide among the
    processes, or a checkpoint that does not fit.
    """
    if isinstance(settings, PlateauSettings) and judge is None:
        raise TypeError(f"{stage}: a plateau needs a judge")
    workers = context.workers
    steps_an_epoch = len(rows) // settings.batch_size
    if steps_an_epoch == 0:
        raise ConfigurationError(f"{stage}: {len(rows)} objects do not fill a batch of {settings.batch_size}")
    if settings.batch_size % workers.size:
        raise ConfigurationError(f"{stage}: batches of {settings.batch_size} do not divide by {workers.size} processes")
    total = settings.steps if settings.steps is not None else settings.epochs * steps_an_epoch
    epochs = -(-total // steps_an_epoch)
    model.to(workers.device)
    parameters = list(model.parameters())
    plateau = Plateau(parameters, settings) if isinstance(settings, PlateauSettings) else None
    schedule: Schedule = plateau or OneCycle(parameters, settings, total)
    modules: dict[str, nn.Module] = {"model": model}
    result, mover = model, None
    if plateau is not None:
        result = modules["best"] = copy.deepcopy(model).eval()
    elif average_decay is not None:
        result = modules["average"] = copy.deepcopy(model).eval()
        mover = _Mover(model, result, average_decay)
    state = _State(modules, schedule, np.random.default_rng(seed))
    run = {"stage": stage, "objects": len(rows), "steps": total}
    if context.checkpoints is not None:
        run |= context.checkpoints.run
        path = context.checkpoints.path(stage)
        if context.checkpoints.resume and path.exists():
            state.load(path, run)
            if workers.rank == 0:
                context.report(f"{stage}: resumed after epoch {state.epochs}/{epochs}")
    bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and workers.device.type == "cuda")
    with _progress(stage, state.epochs * steps_an_epoch, total, workers) as show:
        while state.epochs < epochs and not schedule.finished:
            # Weights stay equal by themselves; buffers that a forward pass changes do not.
            workers.align(model)
            model.train()
            order = state.rng.permutation(rows)
            torch.manual_seed(int(state.rng.integers(2**62)) + workers.rank)
            losses = []
            first = state.epochs * steps_an_epoch
            for step in range(first, min(first + steps_an_epoch, total)):
                chosen = order[(step - first) * settings.batch_size :][: settings.batch_size]
                with torch.autocast(workers.device.type, torch.bfloat16, enabled=bfloat16):
                    value = loss(chosen, state.rng)
                schedule.optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                # Not DistributedDataParallel: it prepares itself in the model's forward, and the losses call the
                # encoders one by one. Which gradients there are is the same in all processes.
                workers.average([p.grad for p in parameters if p.grad is not None])
                if schedule.clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, schedule.clip_norm)
                schedule.before_step(step)
                schedule.optimizer.step()
                if mover is not None:
                    mover.move(step)
                losses.append(value.detach())
                show(step + 1, value)
            state.epochs += 1
            mean = torch.stack(losses).mean()
            workers.average([mean])
            judged = ""
            if plateau is not None and judge is not None:
                with torch.autocast(workers.device.type, torch.bfloat16, enabled=bfloat16):
                    judged = _after_epoch(plateau, model, result, judge, workers)
            if workers.rank == 0:
                if context.checkpoints is not None:
                    state.save(path, run)
                judged += f"; {validate(result)}" if validate is not None else ""
                context.report(f"{stage} epoch {state.epochs}/{epochs}: loss {mean.item():.3f}{judged}")
    if plateau is not None and workers.rank == 0:
        ended = "stopped early" if schedule.finished else "done"
        context.report(f"{stage}: {ended} after epoch {state.epochs}, kept is epoch {plateau.best_epoch}")
    workers.align(result)
    return result


@torch.no_grad()
def _after_epoch(
    plateau: Plateau, model: Model, best: Model, judge: Callable[[Model], Judgement], workers: Workers
) -> str:
    """Judge the model in the first process, set the next epoch's rate in all, keep the weights if they are the best."""
    rate = plateau.rate
    model.eval()
    found = judge(model) if workers.rank == 0 else Judgement(0.0, 0.0)
    judgement = Judgement(*workers.from_first(found))
    if plateau.after_epoch(judgement):
        best.load_state_dict(model.state_dict())
    return f", rate {rate:.2e}; validation loss {judgement.loss:.3f}, accuracy {judgement.accuracy:.4f}"


@contextmanager
def _progress(stage: str, done: int, total: int, workers: Workers) -> Iterator[Callable[[int, Tensor], None]]:
    """A line with loss and steps a second on rich's own console; nothing where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        _StepsPerSecond(),
        TimeRemainingColumn(),
    )
    disabled = workers.rank > 0 or not rich.get_console().is_terminal
    with Progress(*columns, disable=disabled) as progress:
        task = progress.add_task(stage, completed=done, total=total, loss="-")

        def show(step: int, loss: Tensor) -> None:
            if not disabled and (step % SHOW_EVERY == 0 or step == total):
                progress.update(task, completed=step, loss=f"{loss.item():.3f}")

        yield show


class _Mover:
    """Moves the average of the weights; the tensors are looked up once, not at every step."""

    def __init__(self, model: nn.Module, average: nn.Module, decay: float) -> None:
        pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
        self.decay = decay
        self.kept = [kept for kept, _ in pairs if kept.is_floating_point()]
        self.new = [new for kept, new in pairs if kept.is_floating_point()]
        self.counts = [(kept, new) for kept, new in pairs if not kept.is_floating_point()]

    @torch.no_grad()
    def move(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # follows closely at first, while the weights move fast
        torch._foreach_lerp_(self.kept, self.new, 1 - decay)
        for kept, new in self.counts:
            kept.copy_(new)
