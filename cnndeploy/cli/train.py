"""``cnndeploy train``: train a network and write its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.errors import Stopped
from cnndeploy.machine import patient_threads

if TYPE_CHECKING:
    from cnndeploy.training.state import Epoch, Step


@click.command()
@click.argument("architecture", type=common.RegisteredName("architectures"), required=False)
@click.option("--output", type=common.PATH, help="The checkpoint file.  [default: ARCHITECTURE.pt]")
@click.option(
    "--recipe",
    type=click.Choice(["tuned", "original"]),
    help="tuned by trial or the literature, or as the network was trained first.  [default: tuned]",
)
@click.option(
    "--epochs", type=click.IntRange(min=0), help="0 writes untrained weights.  [default: the recipe's]"
)
@click.option("--batch-size", type=common.COUNT, help="[default: the recipe's]")
@click.option(
    "--lr",
    "learning_rate",
    type=common.POSITIVE,
    help="Adam's learning rate, at its height.  [default: the recipe's]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Of weights, order, variation and dropout.  [default: 0]",
)
@click.option("--device", help="cpu, cuda or cuda:N; never another than asked for.  [default: cpu]")
@common.threads_option
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="bfloat16 is used where that is safe (autocast).  [default: float32]",
)
@click.option(
    "--compile", "compiled", is_flag=True, default=None, help="Run the network through torch.compile."
)
@click.option("--images", type=common.COUNT, help="Use only the first N images, for a quick trial.")
@click.option("--resume", is_flag=True, help="Go on where the training of this output stopped.")
@click.option(
    "--from-checkpoint-recipe",
    "recipe_of",
    type=common.PATH,
    metavar="CHECKPOINT",
    help="Train as this checkpoint was: network, recipe, seed, images, precision, device, threads.",
)
@click.option("--tensorboard", type=common.PATH, metavar="DIR", help="Also log each epoch for TensorBoard.")
@common.data_dir_option
def command(architecture: str | None, output: Path | None, tensorboard: Path | None, **settings: Any) -> None:
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

    first = os.environ.get("RANK", "0") == "0"
    recipe_of: Path | None = settings["recipe_of"]
    if recipe_of is not None:
        manifest = Artifact.open(recipe_of).require_manifest()
        architecture = architecture or manifest.architecture
        recorded = manifest.training.get("processes", 1)
        if first and int(os.environ.get("WORLD_SIZE", "1")) != recorded:
            click.echo(
                f"{recipe_of} was trained by {recorded} processes; with another number the weights agree but for "
                f"rounding. For the same: torchrun --nproc-per-node {recorded} -m cnndeploy train ...",
                err=True,
            )
    elif architecture is None:
        raise click.UsageError("Missing argument 'ARCHITECTURE', or --from-checkpoint-recipe.")
    output = output or Path(f"{architecture}.pt")
    if first and settings["resume"]:
        _say_what_is_there(output)
    stop = common.PoliteStop()
    try:
        with stop:
            run_training(architecture, output, tensorboard if first else None, should_stop=stop, **settings)
    except (KeyboardInterrupt, Stopped):
        if first:
            _say_how_to_resume(architecture, output, settings["data_dir"])
        raise SystemExit(stop.exit_code or Stopped.exit_code) from None
    if first:
        draw_training(output)


def run_training(architecture: str, output: Path, tensorboard: Path | None, **settings: Any) -> None:
    """Train, with ``settings`` of train(), and show a bar and a line for each epoch, which TensorBoard gets too."""
    with patient_threads():
        from cnndeploy.training.train import train
    if tensorboard is not None:
        from cnndeploy.training.tensorboard import logger
    log = None if tensorboard is None else logger(tensorboard)

    def on_epoch(epoch: Epoch) -> None:
        click.echo(
            f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.train_loss:.3f}  "
            f"train accuracy {epoch.train_accuracy:.3f}  test accuracy {epoch.test_accuracy:.4f} "
            f"({epoch.test_images:,} images)  {epoch.seconds:.1f} s"
        )
        if log is not None:
            log(epoch)

    with common.progress_bar(f"Training {architecture}") as update:

        def on_step(step: Step) -> None:
            figures = f"loss {step.loss:.3f}  accuracy {step.accuracy:.3f}  {step.images_per_s:,.0f} images/s"
            done = (step.epoch - 1) * step.steps + step.step
            update(done, step.epochs * step.steps, f"Epoch {step.epoch}/{step.epochs}  {figures}")

        train(architecture, output, on_step=on_step, on_epoch=on_epoch, **settings)


def _say_what_is_there(output: Path) -> None:
    anew = f"Nothing to resume at {output}; starting anew."
    there = f"{output} is there already." if output.exists() else anew
    click.echo(f"Resuming from {output}.resume" if Path(f"{output}.resume").exists() else there)


def _say_how_to_resume(architecture: str, output: Path, data_dir: Path | None) -> None:
    if not Path(f"{output}.resume").exists():
        text = f"Stopped before the first step; nothing was saved at {output}."
    elif "WORLD_SIZE" in os.environ:
        text = "Stopped before the end; go on with the same command and --resume"
    else:
        data = () if data_dir is None else ("--data-dir", data_dir)
        again = common.command_line("train", architecture, "--output", output, "--resume", *data)
        text = f"Stopped before the end; go on with: {again}"
    click.echo(f"\n{text}", err=True)


def draw_training(output: Path) -> None:
    """Draw the plots beside a finished checkpoint, and say what was written."""
    from cnndeploy.artifact import Artifact
    from cnndeploy.files import write_file
    from cnndeploy.machine import environment

    click.echo(f"Wrote {output}")
    manifest = Artifact.open(output).require_manifest()
    if not manifest.training:  # untrained
        return
    try:
        from cnndeploy.display.plots import training_plots
    except ModuleNotFoundError:
        click.echo("No plots: matplotlib is not installed; pip install 'cnndeploy[torch]'", err=True)
        return
    files = [log] if (log := Path(f"{output}.jsonl")).exists() else []  # else it was removed since
    for name, plot in training_plots(manifest, environment()).items():
        files.append(Path(f"{output}.{name}.png"))
        write_file(files[-1], plot.png())
    click.echo(f"Wrote {', '.join(map(str, files))}")
