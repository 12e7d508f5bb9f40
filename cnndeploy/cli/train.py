"""``cnndeploy train``: train a network and write its checkpoint."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    POSITIVE_NUMBER,
    TERMINATED,
    PoliteStop,
    RegisteredName,
    data_dir_option,
    progress_bar,
    threads_option,
)
from cnndeploy.errors import Stopped
from cnndeploy.machine import patient_threads

if TYPE_CHECKING:
    from cnndeploy.training.records import Epoch, Step


@click.command()
@click.argument("architecture", type=RegisteredName("architectures"), required=False)
@click.option("--output", type=PATH, help="The checkpoint file.  [default: ARCHITECTURE.pt]")
@click.option(
    "--recipe",
    type=click.Choice(["tuned", "original"]),
    help="tuned by trial or the literature, or as the network was trained first.  [default: tuned]",
)
@click.option(
    "--epochs", type=click.IntRange(min=0), help="0 writes untrained weights.  [default: the recipe's]"
)
@click.option("--batch-size", type=POSITIVE, help="[default: the recipe's]")
@click.option(
    "--lr", type=POSITIVE_NUMBER, help="Adam's learning rate, at its height.  [default: the recipe's]"
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    help="Of weights, order, variation and dropout.  [default: 0]",
)
@click.option("--device", help="cpu, cuda or cuda:N; never another than asked for.  [default: cpu]")
@threads_option
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="bfloat16 is used where that is safe (autocast).  [default: float32]",
)
@click.option(
    "--compile", "compiled", is_flag=True, default=None, help="Run the network through torch.compile."
)
@click.option("--images", type=POSITIVE, help="Use only the first N images, for a quick trial.")
@click.option("--resume", is_flag=True, help="Go on where the training of this output stopped.")
@click.option(
    "--from-checkpoint-recipe",
    "recipe_of",
    type=PATH,
    metavar="CHECKPOINT",
    help="Train as this checkpoint was: network, recipe, seed, images, precision, device, threads.",
)
@click.option("--tensorboard", type=PATH, metavar="DIR", help="Also log each epoch for TensorBoard.")
@data_dir_option
def command(
    architecture: str | None,
    output: Path | None,
    lr: float | None,
    resume: bool,
    recipe_of: Path | None,
    tensorboard: Path | None,
    **settings: Any,
) -> None:
    """Train a network on Fashion-MNIST and write its checkpoint after every epoch.

    Beside OUTPUT lie OUTPUT.jsonl, a line for each epoch, and at the end OUTPUT.curves.png and
    OUTPUT.confusion.png. Ctrl-C ends the step and saves; --resume goes on from there, and after a crash from the
    last completed epoch.

    \b
    Examples:
      cnndeploy train lenet --output lenet.pt
      cnndeploy train lenet --output lenet.pt --resume
      torchrun --nproc-per-node 2 -m cnndeploy train lenet --output lenet.pt
    """
    from cnndeploy.artifact import Artifact

    if architecture is None:
        if recipe_of is None:
            raise click.UsageError("Missing argument 'ARCHITECTURE', or --from-checkpoint-recipe.")
        architecture = Artifact.open(recipe_of).require_manifest().architecture
    _say_where_processes_differ(recipe_of)
    output = output or Path(f"{architecture}.pt")
    first = os.environ.get("RANK", "0") == "0"
    if first and resume:
        _say_what_is_there(output)
    log = _tensorboard(tensorboard) if tensorboard is not None and first else None
    stop = PoliteStop()

    def on_epoch(epoch: Epoch) -> None:
        click.echo(describe_epoch(epoch))
        if log is not None:
            log(epoch)

    try:
        with stop:
            run_training(
                architecture,
                output,
                on_epoch,
                learning_rate=lr,
                resume=resume,
                recipe_of=recipe_of,
                should_stop=stop,
                **settings,
            )
    except (KeyboardInterrupt, Stopped):
        if first:
            _say_how_to_resume(architecture, output, settings["data_dir"])
        if stop.signal == signal.SIGTERM:
            raise SystemExit(TERMINATED) from None
        raise KeyboardInterrupt from None
    if first:
        _draw(output)


def run_training(architecture: str, output: Path, on_epoch: Callable[[Epoch], None], **settings: Any) -> None:
    """Train with a progress bar; ``settings`` are those of :func:`cnndeploy.training.train.train`."""
    with patient_threads():
        from cnndeploy.training.train import train

    with progress_bar(f"Training {architecture}") as update:

        def on_step(step: Step) -> None:
            done = (step.epoch - 1) * step.steps + step.step
            text = (
                f"Epoch {step.epoch}/{step.epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.3f}  "
                f"{step.images_per_s:,.0f} images/s"
            )
            update(done, step.epochs * step.steps, text)

        train(architecture, output, on_step=on_step, on_epoch=on_epoch, **settings)


def describe_epoch(epoch: Epoch) -> str:
    """One line on a completed epoch."""
    return (
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.train_loss:.3f}  "
        f"train accuracy {epoch.train_accuracy:.3f}  test accuracy {epoch.test_accuracy:.4f} "
        f"({epoch.test_images:,} images)  {epoch.seconds:.1f} s"
    )


def _say_where_processes_differ(recipe_of: Path | None) -> None:
    from cnndeploy.artifact import Artifact

    if recipe_of is None:
        return
    recorded = Artifact.open(recipe_of).require_manifest().training.get("processes", 1)
    if int(os.environ.get("WORLD_SIZE", "1")) != recorded and os.environ.get("RANK", "0") == "0":
        click.echo(
            f"{recipe_of} was trained by {recorded} processes; with another number the weights agree but for rounding."
            f" For the same: torchrun --nproc-per-node {recorded} -m cnndeploy train ...",
            err=True,
        )


def _say_what_is_there(output: Path) -> None:
    if Path(f"{output}.resume").exists():
        click.echo(f"Resuming from {output}.resume")
    else:
        click.echo(
            f"{output} is there already."
            if output.exists()
            else f"Nothing to resume at {output}; starting anew."
        )


def _say_how_to_resume(architecture: str, output: Path, data_dir: Path | None) -> None:
    if not Path(f"{output}.resume").exists():
        click.echo(f"\nStopped before the first step; nothing was saved at {output}.", err=True)
    elif "WORLD_SIZE" in os.environ:
        click.echo("\nStopped before the end; go on with the same command and --resume", err=True)
    else:
        command = ["cnndeploy", "train", architecture, "--output", str(output), "--resume"]
        command += [] if data_dir is None else ["--data-dir", str(data_dir)]
        click.echo(f"\nStopped before the end; go on with: {shlex.join(command)}", err=True)


def _tensorboard(folder: Path) -> Callable[[Epoch], None]:
    with patient_threads():
        from cnndeploy.training.tensorboard import logger

    return logger(folder)


def _draw(output: Path) -> None:
    """The plots beside a finished checkpoint."""
    from cnndeploy.artifact import Artifact

    click.echo(f"Wrote {output}")
    manifest = Artifact.open(output).require_manifest()
    if not manifest.training:  # untrained
        return
    try:
        from cnndeploy.display.plots import plot_confusion, plot_curves
    except ModuleNotFoundError:
        click.echo("No plots: matplotlib is not installed; pip install 'cnndeploy[torch]'", err=True)
        return
    log, curves, confusion = (Path(f"{output}{end}") for end in (".jsonl", ".curves.png", ".confusion.png"))
    if log.exists():  # else it was removed since
        plot_curves(log, curves)
    plot_confusion(manifest.training["confusion"], manifest.labels, confusion)
    click.echo(f"Wrote {', '.join(str(each) for each in (log, curves, confusion) if each.exists())}")
