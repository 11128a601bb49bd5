"""The processes that train together, one for each GPU, or one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: the first one prepares the data of all."""


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

    def from_first(self, values: Sequence[float]) -> list[float]:
        """The first process's ``values`` in all of them."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return list(shared.tolist())

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
