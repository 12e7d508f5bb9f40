"""``cnndeploy train``: train a network and write its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.cli import _common as common, _network
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._stop import PoliteStop
from cnndeploy.errors import Stopped
from cnndeploy.machine import patient_threads
from cnndeploy.words import counted

if TYPE_CHECKING:
    from cnndeploy.training.state import Epoch, Step

_PLOTS = ("curves", "confusion")  # as training_plots() names them


@click.command()
@click.argument("architecture", type=_network.SourceName(), required=False)
@click.option("--output", type=common.PATH, help="The checkpoint file.  [default: the network's name, .pt]")
@_network.model_arguments_option
@click.option(
    "--weights",
    type=common.PATH,
    help="Weights to start from, a file of torch.save or of safetensors; the last layer's may be for other classes.",
)
@_network.preprocessing_option(
    "How to prepare images in this training, and for all files that are made from the checkpoint.",
    "what comes with the name, else as is usual on ImageNet, 224 x 224 pixels",
)
@click.option(
    "--recipe",
    type=click.Choice(["tuned", "original"]),
    help="tuned aims at accuracy; original is the plain recipe that the network was first trained with.  "
    "[default: tuned; only cnndeploy's networks have original]",
)
@click.option(
    "--epochs",
    type=common.Whole(),
    help="Passes over the training images; 0 writes untrained weights.  [default: the recipe's]",
)
@click.option("--batch-size", type=common.COUNT, help="Images in one step.  [default: the recipe's]")
@click.option(
    "--lr",
    "learning_rate",
    type=common.POSITIVE,
    help="Adam's highest learning rate.  [default: the recipe's]",
)
@click.option(
    "--seed",
    type=common.Whole(0, 2**32 - 1),
    help="Random seed for weights, order of images, augmentation and dropout.  [default: 0]",
)
@click.option(
    "--device",
    metavar="cpu|cuda[:N]",
    help="Fails if the device is not available; never falls back.  [default: cpu]",
)
@click.option("--threads", type=common.THREADS, help="CPU threads, at most 256.  [default: all usable CPUs]")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="bfloat16 is used only where torch's autocast finds it safe.  [default: float32]",
)
@click.option(
    "--compile", "compiled", is_flag=True, default=None, help="Run the network through torch.compile."
)
@click.option("--images", type=common.COUNT, help="Use only the first N images, for a quick trial.")
@click.option("--resume", is_flag=True, help="Go on where the training of OUTPUT stopped.")
@click.option("--overwrite", is_flag=True, help="Train from the start and replace OUTPUT.")
@click.option(
    "--from-checkpoint-recipe",
    "recipe_of",
    type=common.PATH,
    metavar="CHECKPOINT",
    help="Train as CHECKPOINT was trained: network, recipe, seed, data, images, precision, device, threads.",
)
@click.option("--tensorboard", type=common.PATH, metavar="DIR", help="Also log each epoch for TensorBoard.")
@common.training_data_option
@common.source_option
def command(architecture: str | None, output: Path | None, tensorboard: Path | None, **settings: Any) -> None:
    """Train a network on Fashion-MNIST, or on a folder of images.

    A SOURCE is torchvision:NAME, timm:NAME, package.module:factory, or path/to/file.py:factory, where factory is a
    function that returns a torch.nn.Module. Images are in DIR/train/CLASS and DIR/val/CLASS, or in DIR/CLASS, of which
    a fifth is then held out to test on.

    The checkpoint is written after every epoch. OUTPUT.jsonl gets a line for each epoch. At the end OUTPUT.curves.png
    and OUTPUT.confusion.png are drawn. Ctrl-C finishes the step and saves; --resume goes on from there, or after a
    crash from the last completed epoch. A trained checkpoint is only replaced with --overwrite.

    \b
    Examples:
      cnndeploy train lenet --output lenet.pt
      cnndeploy train lenet --output lenet.pt --resume
      cnndeploy train mymodel.py:build --data photos --output shoes.pt
      cnndeploy train torchvision:resnet18 --weights start.pth --data photos
      torchrun --nproc-per-node 2 -m cnndeploy train lenet --output lenet.pt
    """
    from cnndeploy.artifact import Artifact

    first = os.environ.get("RANK", "0") == "0"
    recipe_of: Path | None = settings["recipe_of"]
    if recipe_of is not None:
        manifest = Artifact.open(recipe_of).require_manifest()
        recorded = manifest.training.get("processes", 1)
        if first and int(os.environ.get("WORLD_SIZE", "1")) != recorded:
            common.say(
                f"{recipe_of} was trained by {recorded} processes. With another number the weights differ by "
                f"rounding. For the same weights: torchrun --nproc-per-node {recorded} -m cnndeploy train ...",
                err=True,
            )
    elif architecture is None:
        raise click.UsageError("Missing argument 'ARCHITECTURE', or --from-checkpoint-recipe.")
    name = architecture or manifest.architecture
    output = output or Path(f"{_short(name)}.pt")
    before = output.stat().st_mtime_ns if output.exists() else None
    if first and settings["resume"]:
        _say_what_is_there(output)
    stop = PoliteStop()
    try:
        with stop:
            run_training(architecture, output, tensorboard if first else None, should_stop=stop, **settings)
    except (KeyboardInterrupt, Stopped):
        if first:
            same = (architecture,) if recipe_of is None else ("--from-checkpoint-recipe", recipe_of)
            data = ("--data", settings["data"]) if settings["data"] else ()
            _say_how_to_resume(output, *same, *data, *common.source_given())
        raise SystemExit(stop.exit_code or Stopped.exit_code) from None
    if first:
        if output.stat().st_mtime_ns == before:
            common.say(f"{output} is complete, and was kept.")
        else:
            common.say_wrote(output)
        common.say_wrote(*draw_training(output))
        common.say_next("export", output, "--format", "onnx")


def _short(name: str) -> str:
    """Return a name for the file of a network, from that of its source."""
    from cnndeploy.sources import is_users

    place, _, last = name.rpartition(":")
    if not is_users(name):
        return last.partition("@")[0].rstrip("/").rpartition("/")[2]
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]


def run_training(architecture: str | None, output: Path, tensorboard: Path | None, **settings: Any) -> None:
    """Train, with ``settings`` of train(), and show a bar and a line for each epoch, which TensorBoard gets too."""
    from cnndeploy.files import check_writable

    for name in _PLOTS:  # they come last, and a folder in their place would be found out after hours
        check_writable(f"{output}.{name}.png")
    with patient_threads():
        from cnndeploy.training.train import train
    if tensorboard is not None:
        from cnndeploy.training.tensorboard import logger
    log = None if tensorboard is None else logger(tensorboard)

    def on_epoch(epoch: Epoch) -> None:
        common.say(
            f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.train_loss:.3f}  "
            f"train accuracy {epoch.train_accuracy:.3f}  test accuracy {epoch.test_accuracy:.4f} "
            f"({counted(epoch.test_images, 'image')})  {epoch.seconds:.1f} s"
        )
        if log is not None:
            log(epoch)

    with progress_bar(f"Training {output.name}") as update:

        def on_step(step: Step) -> None:
            figures = f"loss {step.loss:.3f}  accuracy {step.accuracy:.3f}  {step.images_per_s:,.0f} images/s"
            done = (step.epoch - 1) * step.steps + step.step
            update(done, step.epochs * step.steps, f"Epoch {step.epoch}/{step.epochs}  {figures}")

        settings |= {"on_note": click.echo, "progress": update}
        train(architecture, output, on_step=on_step, on_epoch=on_epoch, **settings)


def _say_what_is_there(output: Path) -> None:
    if Path(f"{output}.resume").exists():
        common.say(f"Resuming from {output}.resume")
    elif output.exists():
        common.say(f"{output} exists already.")
    else:
        common.say(f"There is nothing to resume at {output}; the training begins at the start.")


def _say_how_to_resume(output: Path, *arguments: object) -> None:
    if not Path(f"{output}.resume").exists():
        text = f"Stopped before the first step; nothing was saved at {output}."
    elif "WORLD_SIZE" in os.environ:
        text = "Stopped before the end; go on with the same command and --resume"
    else:
        again = common.command_line("train", *arguments, "--output", output, "--resume")
        text = f"Stopped before the end; go on with: {again}"
    common.say(f"\n{text}", err=True)


def draw_training(output: Path) -> list[Path]:
    """Draw the plots of a finished training; return what lies beside its checkpoint."""
    from cnndeploy.artifact import Artifact
    from cnndeploy.files import write_file
    from cnndeploy.machine import environment

    manifest = Artifact.open(output).require_manifest()
    if not manifest.training:  # untrained
        return []
    files = [log] if (log := Path(f"{output}.jsonl")).exists() else []  # else it was removed since
    try:
        from cnndeploy.display.plots import training_plots
    except ModuleNotFoundError:
        common.say("No plots: matplotlib is not installed; pip install 'cnndeploy[torch]'", err=True)
        return files
    for name, plot in training_plots(manifest, environment()).items():
        files.append(Path(f"{output}.{name}.png"))
        write_file(files[-1], plot.png())
    return files
