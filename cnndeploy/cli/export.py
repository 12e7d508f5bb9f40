"""``cnndeploy export``: write a checkpoint as self-contained files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.errors import ArtifactError
from cnndeploy.words import printable

if TYPE_CHECKING:
    from cnndeploy.artifact import Artifact

_NAMED = 5
_TRITON = "triton"


@click.command()
@click.argument("checkpoint", type=common.PATH)
@click.option(
    "--format",
    "formats",
    type=common.RegisteredName("exporters", _TRITON),
    multiple=True,
    help="The file format; repeatable; triton is a model repository.  [default: all but executorch and triton]",
)
@click.option(
    "--output",
    type=common.PATH,
    help="File to write, in the format that its ending says or that --format names.",
)
@click.option("--output-dir", type=common.PATH, help="Folder to write to.  [default: that of the checkpoint]")
@common.model_input_option
@click.option(
    "--resize",
    type=click.Choice(["native", "portable"]),
    help="How a file that takes raw images resizes them as Pillow does: native, for ONNX Runtime, or portable, for "
    "OpenVINO and others too.  [default: native]",
)
@click.option("--opset", type=int, metavar="N", help="ONNX opset, 18 to 23.  [default: 20]")
@common.source_option
@click.option(
    "--no-simplify",
    is_flag=True,
    help="Write the network as it is, without the exact rewrites that compute the same with less work.",
)
def command(
    checkpoint: Path,
    formats: tuple[str, ...],
    output: Path | None,
    output_dir: Path | None,
    no_simplify: bool,
    resize: str | None,
    **settings: Any,
) -> None:
    """Export a checkpoint to self-contained files.

    Each file is checked after it was saved. With --format triton, OUTPUT_DIR/NAME gets what NVIDIA Triton, KServe and
    OpenVINO Model Server serve: the ONNX file, its certificate, and a configuration with names, shapes and threads;
    OUTPUT_DIR/NAME.yaml is the InferenceService that KServe needs. CHECKPOINT may then also be an ONNX file, or a
    folder that cnndeploy tune wrote.

    \b
    Examples:
      cnndeploy export lenet.pt --format onnx --format torchscript
      cnndeploy export lenet.pt --output lenet-v2.onnx
      cnndeploy export lenet.pt --format onnx --input image --output-dir app
      cnndeploy export shoes.pt --format onnx --input image --resize portable
      cnndeploy export lenet.deploy --format triton --output-dir models
    """
    from cnndeploy.exporters import EXPORTERS, usual_formats

    flags = (
        ("--opset", "opset", settings["opset"] is not None),
        ("--no-simplify", "simplify", no_simplify),
        ("--resize", "resize", resize is not None),
    )
    if resize is not None and settings["input"] == "tensor":
        raise click.UsageError("--resize is for files that take raw images: --input image")
    settings["resize"] = resize or "native"
    if output is not None:
        formats = (_format_of(output, formats, output_dir),)
    if _TRITON in formats:
        if set(formats) != {_TRITON}:
            raise click.UsageError("triton is written by itself; leave out the other formats")
        changed = [flag for flag, _, given in flags if given] + ["--input"] * (settings["input"] != "tensor")
        _write_repository(checkpoint, output_dir, changed, simplify=not no_simplify, **settings)
        return
    exporters = {name: EXPORTERS.get(name) for name in formats or usual_formats()}
    for flag, option, given in flags:
        if given and not any(option in exporter.options for exporter in exporters.values()):
            raise click.UsageError(f"{flag} does not apply to {', '.join(exporters)}")
    _export(checkpoint, exporters, output, output_dir, simplify=not no_simplify, **settings)


def _format_of(output: Path, formats: tuple[str, ...], folder: Path | None) -> str:
    """Return the one format of a file that is named; raise UsageError unless there is one."""
    from cnndeploy.exporters import EXPORTERS

    if folder is not None or _TRITON in formats or len(formats) > 1:
        raise click.UsageError(
            "--output names one file; for a folder, or for several formats, use --output-dir"
        )
    endings = {name: EXPORTERS.get(name).suffix for name in EXPORTERS.names()}
    known = [name for name, ending in endings.items() if ending == output.suffix]
    if formats or known:
        return (*formats, *known)[0]
    raise click.UsageError(f"{output} should end in {' or '.join(endings.values())}; or name a --format")


def _export(
    checkpoint: Path,
    exporters: Iterable[str],
    output: Path | None,
    output_dir: Path | None,
    **settings: Any,
) -> None:
    """Write a file in each format, and say what is in it."""
    from cnndeploy.artifact import Artifact
    from cnndeploy.certificate import certificate_path
    from cnndeploy.exporters import EXPORTERS, export
    from cnndeploy.files import make_folder

    source = Artifact.open(checkpoint)  # before a folder is made for what comes of it
    if output_dir is not None:
        make_folder(output_dir)
    paths = {}
    for name in exporters:
        path = output or (output_dir or checkpoint.parent) / f"{checkpoint.stem}{EXPORTERS.get(name).suffix}"
        certificate = certificate_path(path)
        had_certificate = certificate.exists()
        artifact = export(checkpoint, name, path, **settings)
        size, manifest = artifact.path.stat().st_size, artifact.require_manifest()
        takes = f"{manifest.input}, {'raw images' if manifest.takes_images else 'preprocessed'}"
        common.say(
            f"Wrote {printable(str(path))} (input: {takes})  {size:,} bytes  SHA-256 {artifact.sha256[:16]}"
        )
        if manifest.rewrites:
            common.say(f"  simplified: {_rewrites(manifest.rewrites)}")
        if had_certificate and not certificate.exists():
            common.say(f"  removed {certificate}: it was of the file that was there before")
        paths[name] = path
    _say_next(source, paths.get("onnx", path))


def _say_next(source: Artifact, exported: Path) -> None:
    """Say how to verify what was exported; what a compressed checkpoint gives is compared with its original."""
    from cnndeploy.artifact import short_hash

    if source.is_reference:
        common.say_next("verify", exported, "--against", source.path)
        return
    original = short_hash(source.require_manifest().held_against)
    command = common.command_line("verify", exported, "--against", "ORIGINAL.pt", *common.source_given())
    common.say(f"Next: {command}")
    common.say(f"ORIGINAL.pt is the checkpoint ({original}) that {source.path} was compressed from.")


def _write_repository(source: Path, folder: Path | None, changed: list[str], **settings: Any) -> None:
    """Write a model repository of a checkpoint, which is exported first, an ONNX file or a deployment."""
    from cnndeploy.artifact import Artifact
    from cnndeploy.certificate import require_certificate
    from cnndeploy.deployment import resolve
    from cnndeploy.exporters import export
    from cnndeploy.files import scratch_folder
    from cnndeploy.serving.triton import FILE, write_repository

    if folder is None:
        raise click.UsageError("say where the model repository is: --output-dir models")
    candidate = resolve(source)
    is_checkpoint = candidate.artifact.format == "checkpoint"
    if changed and not is_checkpoint:
        raise click.UsageError(f"{changed[0]} is for checkpoints; {source} is exported already")
    with scratch_folder() as scratch:
        model: Any = source
        if is_checkpoint:
            model = export(source, "onnx", Path(scratch, f"{source.stem}.onnx"), **settings)
        target = write_repository(model, folder)
    file = target / "1" / FILE
    common.say(f"Wrote {printable(str(target))}: config.pbtxt, labels.txt, 1/{FILE}")
    common.say(
        f"Wrote {printable(f'{target}.yaml')} for KServe; check that its storageUri is where you put the repository"
    )
    if is_checkpoint:
        _say_next(candidate.artifact, file)
        return
    try:
        options = replace(candidate.run.choices, cuda_graph=False)  # config.pbtxt does not ask for them
        run = replace(candidate.run, runtime="onnxruntime", options=options)
        require_certificate(Artifact.open(file), run, True)
        common.say("  with its certificate")
    except ArtifactError as error:
        common.say(f"Warning: {error}", err=True)


def _rewrites(rewrites: tuple[str, ...]) -> str:
    """Name the rewrites; count those of a kind if there are many, as in a network with batch normalisation."""
    if len(rewrites) <= _NAMED:
        return ", ".join(rewrites)
    kinds = Counter(rewrite.partition("(")[0] for rewrite in rewrites)
    return ", ".join(f"{kind} ({count} times)" if count > 1 else kind for kind, count in kinds.items())
