"""``cnndeploy data``: find, fetch and describe Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

import click

from cnndeploy.cli import _common as common


@click.group()
def command() -> None:
    """Find or fetch the data set, Fashion-MNIST.

    \b
    Examples:
      cnndeploy data fetch
      cnndeploy data info
    """


@command.command()
@common.data_dir_option
def fetch(data_dir: Path | None) -> None:
    """Make sure that the data set is there and undamaged.

    Looks in the data folder, in the folder of Debian's package dataset-fashion-mnist, and on torchvision's mirror. If
    all fail, it downloads that package with apt-get. It checks the SHA-256 of every file.

    \b
    Example:
      cnndeploy data fetch
    """
    fetch_data(data_dir)
    if not Path("lenet.pt").exists():
        common.say_next("train", "lenet", *(() if data_dir is None else ("--data-dir", data_dir)))


def fetch_data(data_dir: Path | None) -> None:
    """Fetch the data set with a progress bar, and say where it came from and where it is."""
    from cnndeploy.datasets import fashion_mnist

    with common.progress_bar("Fashion-MNIST") as update:
        origin = fashion_mnist.fetch(data_dir, progress=update)
    click.echo(f"Fashion-MNIST: {origin}")
    click.echo(f"Folder: {fashion_mnist.data_folder(data_dir)}")


@command.command()
@common.data_dir_option
@common.json_flag
def info(data_dir: Path | None, as_json: bool) -> None:
    """Print where the data set is and what is in it.

    \b
    Example:
      cnndeploy data info --json
    """
    from cnndeploy.datasets import Split, fashion_mnist

    files = fashion_mnist.status(data_dir)
    complete = all(state == "ok" for state in files.values())
    splits: tuple[Split, ...] = ("train", "test") if complete else ()
    counts = {split: len(fashion_mnist.load(split, data_dir)) for split in splits}
    facts = {
        "folder": str(fashion_mnist.data_folder(data_dir)),
        "files": files,
        "images": counts,
        "image_size": [fashion_mnist.IMAGE_SIZE, fashion_mnist.IMAGE_SIZE],
        "labels": list(fashion_mnist.LABELS),
    }
    if as_json:
        common.write_json("-", facts)
        return
    click.echo(f"Folder: {facts['folder']}")
    for name, state in files.items():
        click.echo(f"  {name}: {state}")
    if complete:
        click.echo(f"Images: {counts['train']:,} to train, {counts['test']:,} to test, uint8, 28 x 28")
        click.echo(f"Labels: {', '.join(fashion_mnist.LABELS)}")
    else:
        damaged = "damaged" in files.values()
        first = "Delete what is damaged, then get it" if damaged else "Get what is missing"
        click.echo(f"{first} with: {fashion_mnist.fetch_command(data_dir)}")
