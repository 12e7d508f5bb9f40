"""``cnndeploy predict``: classify image files."""

from __future__ import annotations

from pathlib import Path

import click

from cnndeploy.cli._common import (
    PATH,
    RegisteredName,
    device_option,
    json_flag,
    print_json,
    threads_option,
)


@click.command()
@click.argument("model", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--runtime", type=RegisteredName("runtimes"), help="[default: the format's own]")
@device_option
@threads_option
@json_flag
def command(
    model: Path,
    images: tuple[Path, ...],
    runtime: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Classify images: light on dark, as in Fashion-MNIST, of any size.

    \b
    Example:
      cnndeploy predict lenet.onnx shoe.png
    """
    from cnndeploy.classifier import load, read_image

    arrays = [read_image(path) for path in images]
    with load(model, runtime=runtime, device=device, threads=threads) as classifier:
        found = []
        for path, array in zip(images, arrays, strict=True):
            probabilities = classifier.probabilities(array)[0]
            ranked = sorted(zip(probabilities.tolist(), classifier.labels, strict=True), reverse=True)
            classes = [{"label": label, "probability": probability} for probability, label in ranked]
            found.append({"image": str(path), "classes": classes})
    if as_json:
        print_json({"model": str(model), "predictions": found})
        return
    for path, prediction in zip(images, found, strict=True):
        click.echo(f"{path}:")
        for each in prediction["classes"]:
            click.echo(f"  {each['probability']:7.2%}  {each['label']}")  # type: ignore[index]
