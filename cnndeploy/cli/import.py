"""``cnndeploy import``: make a checkpoint of a network of your own, or add a manifest to an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnndeploy.cli import _common as common, _network
from cnndeploy.cli._progress import progress_bar
from cnndeploy.machine import patient_threads
from cnndeploy.words import counted


@click.command()
@click.argument("network")
@click.option("--output", type=common.PATH, required=True, help="The checkpoint or ONNX file.")
@_network.model_arguments_option
@click.option("--weights", type=common.PATH, help="File of torch.save, or of safetensors.")
@_network.preprocessing_option(
    "How images were prepared when these weights were trained; this option does not change the weights.",
    "what comes with the name",
)
@click.option(
    "--labels",
    type=common.PATH,
    metavar="FILE",
    help="The labels, one on each line or as JSON, in the order of the outputs.  "
    "[default: what comes with the name, else the classes of the data]",
)
@common.imported_data_option
@common.images_option
@click.option(
    "--output-name",
    metavar="NAME",
    help="Which of several outputs are the logits: a key, a field, or a number from 0.  [default: logits, out or "
    "output, else the first]",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT.")
@common.json_file_option
def command(
    network: str,
    output: Path,
    arguments: dict[str, Any] | None,
    json_file: str | None,
    **settings: Any,
) -> None:
    """Import a network of your own, or an ONNX file of another tool.

    NETWORK says what builds it: torchvision:NAME@WEIGHTS, timm:NAME, timm:FOLDER, package.module:factory, or
    path/to/file.py:factory, where factory is a function that returns a torch.nn.Module. OUTPUT is a checkpoint. It is
    written only if the network returns logits, as many as there are labels, the same each time, for each image by
    itself, and can be exported.

    NETWORK may also be an ONNX file that another tool wrote. OUTPUT is then an ONNX file that computes the same, and
    also says how images are prepared and what the labels are. evaluate, bench, quantize, tune, predict and load take
    it, and verify compares other files with it.

    A factory of yours is remembered on this machine, so that other commands may call it for this checkpoint. It must be
    named again if its file changes.

    \b
    Examples:
      cnndeploy import torchvision:resnet18@DEFAULT --output resnet18.pt
      cnndeploy import timm:resnet10t --weights w.safetensors --output m.pt
      cnndeploy import mymodel.py:build --weights best.pth \\
        --preprocessing prep.json --data photos --output shoes.pt
      cnndeploy import theirs.onnx --preprocessing prep.json \\
        --labels names.txt --output ours.onnx
    """
    with patient_threads():
        from cnndeploy.importing.import_model import import_model
    with progress_bar(f"Importing {network}") as update:
        made = import_model(network, output, arguments=arguments, progress=update, **settings)
    for note in made.notes:
        common.say(f"  {note}", err=json_file == "-")
    for fact in made.shown:
        common.say(f"  shown: it {fact}", err=json_file == "-")
    if (measured := made.evaluation) is not None:
        low, high = measured.interval
        accuracy = f"{measured.accuracy:.4f} (95% interval {low:.4f} to {high:.4f})"
        common.say(f"  accuracy: {accuracy} on {counted(measured.images, 'image')}", err=json_file == "-")
    for doubt in made.doubts:
        common.say(f"Warning: {doubt}", err=True)
    common.write_json(json_file, made.to_dict())
    common.say_wrote(output, json_file=json_file)
    if made.artifact.format == "checkpoint":
        common.say_next("export", output, "--format", "onnx", json_file=json_file)
    else:
        common.say_next("bench", output, json_file=json_file)
