"""Several processes that train one network, as ``torchrun`` starts them, or a single process.

Source: Li et al.: PyTorch Distributed: experiences on accelerating data parallel training, 2020.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from cnndeploy.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Processes:
    """The place of this process: ``rank`` of ``count`` processes, ``local_rank`` of ``local_count`` on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    def device(self, name: str) -> str:
        """Return this process's own device for ``name``; raise TrainingError if several would share a GPU."""
        if name not in ("cpu", "cuda") and self.local_count > 1:
            advice = "use device='cuda'"
            raise TrainingError(f"{name} is one GPU and there are {self.local_count} processes; {advice}")
        return f"cuda:{self.local_rank}" if name == "cuda" and self.count > 1 else name

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the rows of a global batch that this process computes."""
        return batch[self.rank :: self.count]

    def wrapped(self, network: torch.nn.Module) -> torch.nn.Module:
        """Return the network, wrapped to average gradients over the processes if there are several."""
        return network if self.count == 1 else DistributedDataParallel(network)

    def total(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return each value summed over the processes."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(list(values), dtype=torch.float64, device=device)
        distributed.all_reduce(sums)
        return list(sums.tolist())

    def wait(self) -> None:
        """Wait until all other processes call this too."""
        if self.count > 1:
            distributed.barrier()


def from_environment() -> Processes:
    """Read the environment variables that torchrun sets."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Processes(*(int(os.environ[name]) for name in names))


@contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Connect to the other processes: over NCCL on GPUs, over Gloo on CPUs."""
    if processes.count == 1 or distributed.is_initialized():
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        yield
    finally:
        distributed.destroy_process_group()
