"""How fast is training's input? Two ratios, each measured in turns within one run.

1. An epoch of LeNet the usual way (torchvision's FashionMNIST with ToTensor, a DataLoader with workers, Adam,
   learning rate 0.001, batch 256) over one of `cnndeploy train` with the same hyperparameters.
2. AlexNet at 224: steps with input (sliced, scaled and resized on the device) over steps on one ready batch.

    .venv/bin/python benchmarks/train_speed.py
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.datasets import fashion_mnist
from cnndeploy.display.cells import machine_line
from cnndeploy.machine import environment, patient_threads, usable_cpus

with patient_threads():
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    from cnndeploy.training.batches import Batches
    from cnndeploy.training.distributed import Processes
    from cnndeploy.training.state import Epoch
from cnndeploy.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of training speed.")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of LeNet each way (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="of the usual DataLoader (default: 2)")
    parser.add_argument("--steps", type=int, default=20, help="steps of AlexNet each way (default: 20)")
    parser.add_argument("--batch-size", type=int, default=32, help="of AlexNet (default: 32)")
    arguments = parser.parse_args()
    fashion_mnist.fetch()
    torch.set_num_threads(usable_cpus())
    lenet(arguments.rounds, arguments.workers)
    alexnet(arguments.steps, arguments.batch_size)
    print(machine_line(environment()))


def lenet(rounds: int, workers: int) -> None:
    ratios = []
    for number in range(1, rounds + 1):
        usual, ours = in_a_process(usual_epoch, workers), in_a_process(our_epoch)
        ratios.append(usual / ours)
        print(
            f"lenet, round {number}: usual {usual:.2f} s, ours {ours:.2f} s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"lenet: the speed-up of an epoch is {statistics.median(ratios):.2f} (median of {rounds} rounds)")


def in_a_process(epoch: Callable[..., float], *arguments: int) -> float:
    """Run an epoch in a fresh process: our settings of the C library's allocator would help the usual one too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(epoch, *arguments).result()


def usual_epoch(workers: int) -> float:
    """Return the seconds of an epoch as most notebooks train."""
    torch.set_num_threads(usable_cpus())
    images = FashionMNIST(fashion_mnist.data_folder(None), train=True, transform=ToTensor())
    loader = DataLoader(images, batch_size=256, shuffle=True, num_workers=workers)
    network = ARCHITECTURES.get("lenet").build().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    started = time.perf_counter()
    for batch, labels in loader:
        optimizer.zero_grad()
        functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()
    return time.perf_counter() - started


def our_epoch() -> float:
    """Return the seconds that an epoch of ours reports, without the evaluation after it."""
    epochs: list[Epoch] = []
    with tempfile.TemporaryDirectory() as folder:
        train("lenet", Path(folder) / "lenet.pt", recipe="original", epochs=1, on_epoch=epochs.append)
    return epochs[0].seconds


def alexnet(steps: int, batch_size: int) -> None:
    design = ARCHITECTURES.get("alexnet")
    network = design.build().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    recipe = dataclasses.replace(design.recipes["original"], batch_size=batch_size)
    batches = Batches(
        fashion_mnist.load("train"), design.preprocessing, recipe, 0, torch.device("cpu"), Processes()
    ).epoch(1)
    ready = next(batches)

    def step(source: Callable[[], tuple[torch.Tensor, torch.Tensor, int]]) -> float:
        started = time.perf_counter()
        images, labels, _ = source()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - started

    step(lambda: ready)
    pairs = [(step(lambda: next(batches)), step(lambda: ready)) for _ in range(steps)]
    with_input, without = (sum(times) for times in zip(*pairs, strict=True))
    print(
        f"alexnet at 224, batch {batch_size}, {steps} steps each in turns: with input {with_input:.1f} s, "
        f"on a ready batch {without:.1f} s, ratio {with_input / without:.3f}"
    )


if __name__ == "__main__":
    main()
