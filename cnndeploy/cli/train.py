"""``cnndeploy train``: train a network and write its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    POSITIVE_NUMBER,
    RegisteredName,
    data_dir_option,
    device_option,
    progress_bar,
    threads_option,
)
from cnndeploy.machine import patient_threads

if TYPE_CHECKING:
    from cnndeploy.training.loop import Epoch, Step


@click.command()
@click.argument("architecture", type=RegisteredName("architectures"))
@click.option("--output", type=PATH, help="The checkpoint file.  [default: ARCHITECTURE.pt]")
@click.option(
    "--epochs", type=click.IntRange(min=0), help="0 writes untrained weights.  [default: the recipe's]"
)
@click.option("--batch-size", type=POSITIVE, help="[default: the recipe's]")
@click.option("--lr", type=POSITIVE_NUMBER, help="Adam's learning rate.  [default: the recipe's]")
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    show_default=True,
    help="Of weights and order.",
)
@device_option
@threads_option
@click.option("--limit", type=POSITIVE, help="Use only the first N images, for a quick trial.")
@data_dir_option
def command(
    architecture: str,
    output: Path | None,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int,
    device: str,
    threads: int | None,
    limit: int | None,
    data_dir: Path | None,
) -> None:
    """Train a network on Fashion-MNIST and write its checkpoint after every epoch.

    \b
    Example:
      cnndeploy train lenet --epochs 5 --output lenet.pt
    """
    output = output or Path(f"{architecture}.pt")
    completed = 0

    def on_epoch(epoch: Epoch) -> None:
        nonlocal completed
        completed = epoch.epoch
        click.echo(describe_epoch(epoch))

    try:
        run_training(
            architecture,
            output,
            on_epoch,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            seed=seed,
            device=device,
            threads=threads,
            limit=limit,
            data_dir=data_dir,
        )
    except KeyboardInterrupt:
        held = f"{output} holds epoch {completed}" if completed else f"{output} was not written"
        click.echo(f"\nStopped before the end; {held}.", err=True)
        raise
    click.echo(f"Wrote {output}")


def run_training(architecture: str, output: Path, on_epoch: object, **settings: object) -> None:
    """Train with a progress bar; ``settings`` are those of :func:`cnndeploy.training.loop.train`."""
    with patient_threads():
        from cnndeploy.training.loop import train

    with progress_bar(f"Training {architecture}") as update:

        def on_step(step: Step) -> None:
            done = (step.epoch - 1) * step.steps + step.step
            text = f"Epoch {step.epoch}/{step.epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.3f}"
            update(done, step.epochs * step.steps, text)

        train(architecture, output, on_step=on_step, on_epoch=on_epoch, **settings)  # type: ignore[arg-type]


def describe_epoch(epoch: Epoch) -> str:
    """One line on a completed epoch."""
    return (
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.train_loss:.3f}  "
        f"train accuracy {epoch.train_accuracy:.3f}  test accuracy {epoch.test_accuracy:.4f} "
        f"({epoch.test_images:,} images)  {epoch.seconds:.1f} s"
    )
