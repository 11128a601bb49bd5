"""The loop that both training stages share: workers, precision, optimiser, schedule, average, checkpoints.

Nothing here depends on the time or on the number of processes: a stage's steps, its batches and their order come
from the settings and the seed alone, and each process works on its own share of every batch.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

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
from torch import distributed as dist

from broker.errors import ConfigurationError
from training.config import StageSettings

CPU = torch.device("cpu")
CLIP_NORM = 1.0
CHECKPOINT_FORMAT = 1
PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: the first one prepares the data of all."""
SHOW_EVERY = 10
"""Steps between two looks at the loss for the progress bar; each look makes the processor wait for the GPU."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that train together; ``Workers()`` is one that trains alone on the CPU."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def own(self) -> slice:
        """This process's share of a batch: every ``size``-th object, so that the first n are shared evenly too."""
        return slice(self.rank, None, self.size)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes through the block before the others: it fills the caches that they then read."""
        if self.size > 1 and self.rank > 0:
            dist.barrier()
        yield
        if self.size > 1 and self.rank == 0:
            dist.barrier()

    def gather(self, own: Tensor) -> Tensor:
        """(n, ...) of each process to (size * n, ...) in the order of the ranks; gradients flow back to all."""
        if self.size == 1:
            return own
        gathered: Tensor = _Gather.apply(own, self)  # type: ignore[no-untyped-call]
        return gathered

    def share(self, weight: Tensor) -> Tensor:
        """What to multiply means over this process's objects with, so that their average is the mean over all.

        ``weight`` (k,) float: for each of k means, the sum of the weights of this process's objects.
        """
        if self.size == 1:
            return torch.ones_like(weight)
        total = weight.clone()
        dist.all_reduce(total)
        return weight * self.size / total.clamp(min=1e-6)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one exchange."""
        if self.size == 1:
            return
        joined = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(joined)
        joined /= self.size
        for tensor, mean in zip(tensors, torch.split(joined, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def align(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass sums what the processes' losses say of this process's part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, workers: Workers) -> Tensor:
        ctx.workers = workers
        parts = [torch.empty_like(own) for _ in range(workers.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(ctx.workers.size)[ctx.workers.rank], None


@contextmanager
def join_workers() -> Iterator[Workers]:
    """This process's place: one of many under ``torchrun``, else alone; a GPU where there is one, else the CPU.

    ``torchrun`` says by ``LOCAL_RANK`` which of the machine's GPUs is this process's. All processes have to see
    the same run folder.
    """
    local_rank = os.environ.get("LOCAL_RANK")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(local_rank or 0)) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if local_rank is None:
        yield Workers(device=device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE, device_id=device if cuda else None)
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


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

    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    epochs: int = 0
    """Epochs that are done."""

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model} | ({"average": self.average} if self.average is not None else {})

    def save(self, path: Path, run: Mapping[str, object]) -> None:
        """Write one safetensors file; a reader sees the old file or the new one, never a part."""
        tensors = {f"{part}/{k}": v for part, m in self.modules().items() for k, v in m.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        header = {
            "format": CHECKPOINT_FORMAT,
            "run": run,
            "epochs": self.epochs,
            "rng": self.rng.bit_generator.state,
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
            for part, module in self.modules().items():
                prefix = f"{part}/"
                module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            self._load_optimizer(tensors)
            self.rng.bit_generator.state = header["rng"]
            self.epochs = header["epochs"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"cannot resume from {path}: {error}; train without --resume to start again"
            ) from error

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                parameter_name, _, key = rest.rpartition("/")
                parameter = parameters[parameter_name]
                self.optimizer.state[parameter][key] = value.to(parameter.device)


class _StepsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} steps/s" if speed else "")


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
) -> Model:
    """Train ``model`` in place on the workers' device; returns it, or the moving average of its weights.

    ``loss`` takes the rows of a whole batch, the same in all processes, and the generator of the stage's random
    numbers, from which all processes have to draw the same; it computes the loss on the rows of
    ``workers.own``, so that the processes' average is the loss of the whole batch. It draws dropout and the like
    from torch, whose seed is drawn anew in each epoch from that generator, another one for each process:
    its state is all the randomness that a checkpoint has to hold, whatever the device and however many the processes.

    With ``average_decay`` an exponential moving average of the weights is kept and returned, and ``validate`` of
    it added to each epoch's line; without, ``validate`` sees the model itself. With checkpoints in ``context``,
    one is written after each epoch, and if they are to be resumed, training goes on from there; on one CPU the
    weights are the same, bit for bit, as without the interruption. Raises ConfigurationError if there
    are fewer rows than one batch, batches that do not divide among the processes, or a checkpoint that does
    not fit.
    """
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
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    average = copy.deepcopy(model).eval() if average_decay is not None else None
    result = model if average is None else average
    state = _State(model, average, optimizer, np.random.default_rng(seed))
    run = {"stage": stage, "objects": len(rows), "steps": total}
    if context.checkpoints is not None:
        run |= context.checkpoints.run
        path = context.checkpoints.path(stage)
        if context.checkpoints.resume and path.exists():
            state.load(path, run)
            if workers.rank == 0:
                context.report(f"{stage}: resumed after epoch {state.epochs}/{epochs}")
    bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and workers.device.type == "cuda")
    mover = _Mover(model, average, average_decay) if average is not None and average_decay is not None else None
    with _progress(stage, state.epochs * steps_an_epoch, total, workers) as show:
        while state.epochs < epochs:
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
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                # Not DistributedDataParallel: it prepares itself in the model's forward, and the losses call the
                # encoders one by one. Which gradients there are is the same in all processes.
                workers.average([p.grad for p in parameters if p.grad is not None])
                nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
                rate, momentum = one_cycle(step, total)
                for group in optimizer.param_groups:
                    group["lr"] = rate * settings.learning_rate
                    group["betas"] = (momentum, group["betas"][1])
                optimizer.step()
                if mover is not None:
                    mover.move(step)
                losses.append(value.detach())
                show(step + 1, value)
            state.epochs += 1
            mean = torch.stack(losses).mean()
            workers.average([mean])
            if workers.rank == 0:
                if context.checkpoints is not None:
                    state.save(path, run)
                judged = f"; {validate(result)}" if validate is not None else ""
                context.report(f"{stage} epoch {state.epochs}/{epochs}: loss {mean.item():.3f}{judged}")
    workers.align(result)
    return result


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
