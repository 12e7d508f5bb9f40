"""``cnndeploy data``: find and fetch Fashion-MNIST, and describe a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.words import counted

if TYPE_CHECKING:
    from cnndeploy.datasets.image_folder import ImageFolder


@click.group()
def command() -> None:
    """Find or fetch Fashion-MNIST, or describe a folder of images.

    \b
    Examples:
      cnndeploy data fetch
      cnndeploy data info
    """


@command.command()
@common.data_dir_option
def fetch(data_dir: Path | None) -> None:
    """Make sure that Fashion-MNIST is there and undamaged.

    Looks in the data folder, in the folder of Debian's package dataset-fashion-mnist, and on torchvision's mirror. If
    all fail, it downloads that package with apt-get. It checks the SHA-256 of every file.

    \b
    Example:
      cnndeploy data fetch
    """
    fetch_data(data_dir)
    if not Path("lenet.pt").exists():
        common.say_next("train", "lenet", *(() if data_dir is None else ("--data", data_dir)))


def fetch_data(data_dir: Path | None) -> None:
    """Fetch the data set with a progress bar, and say where it came from and where it is."""
    from cnndeploy.datasets import fashion_mnist

    with progress_bar("Fashion-MNIST") as update:
        origin = fashion_mnist.fetch(data_dir, progress=update)
    common.say(f"Fashion-MNIST: {origin}")
    common.say(f"Folder: {fashion_mnist.data_folder(data_dir)}")


@command.command()
@click.option("--data", metavar="DIR", help="A folder of images.  [default: Fashion-MNIST]")
@click.option("--check", is_flag=True, help="Read every image of the folder, and count the damaged ones.")
@common.data_dir_option
@common.json_flag
def info(data: str | None, check: bool, data_dir: Path | None, as_json: bool) -> None:
    """Print where a data set is and what is in it.

    A folder of images is DIR/CLASS/*, of which a fifth are held out to test on; or the folders of the classes are in
    DIR/train and in DIR/test, which may also be called val.

    \b
    Examples:
      cnndeploy data info --json
      cnndeploy data info --data photos --check
    """
    from cnndeploy.datasets import open_dataset
    from cnndeploy.datasets.image_folder import ImageFolder

    if data is not None and isinstance(folder := open_dataset(data), ImageFolder):
        facts = _checked(folder) if check else folder.describe()
        if as_json:
            common.write_json("-", facts)
        else:
            _print_folder(facts)
        return
    _print_fashion_mnist(data_dir if data in (None, "fashion-mnist") else Path(str(data)), as_json)


def _checked(folder: ImageFolder) -> dict[str, Any]:
    """Describe a folder after all its images were read, with a bar."""
    with progress_bar(f"Reading {folder.folder}") as update:
        return folder.describe(check=True, progress=update)


def _print_folder(facts: dict[str, Any]) -> None:
    common.say(f"Folder: {facts['folder']}")
    for split, counts in facts["images"].items():
        total = counted(sum(counts.values()), "image")
        common.say(f"  {split}: {total}, {facts['bytes'][split]:,} bytes")
        for label, count in counts.items():
            common.say(f"    {label or '(no classes)'}: {count:,}")
    if facts["note"]:
        common.say(facts["note"])
    if facts["ignored"]:
        common.say(f"Ignored, because hidden or no image by its name: {counted(facts['ignored'], 'file')}")
    if facts["damaged"] is not None:
        common.say(f"Damaged: {counted(len(facts['damaged']), 'image')}")
        for reason in facts["damaged"].values():
            common.say(f"  {reason}")


def _print_fashion_mnist(data_dir: Path | None, as_json: bool) -> None:
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
    common.say(f"Folder: {facts['folder']}")
    for name, state in files.items():
        common.say(f"  {name}: {state}")
    if complete:
        common.say(f"Images: {counts['train']:,} to train, {counts['test']:,} to test, uint8, 28 x 28")
        common.say(f"Labels: {', '.join(fashion_mnist.LABELS)}")
    else:
        damaged = "damaged" in files.values()
        first = "Delete what is damaged, then get it" if damaged else "Get what is missing"
        common.say(f"{first} with: {fashion_mnist.fetch_command(data_dir)}")
