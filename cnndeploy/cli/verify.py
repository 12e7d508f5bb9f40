"""``cnndeploy verify``: does an exported file compute what its checkpoint computes?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    RegisteredName,
    console_for,
    data_dir_option,
    device_option,
    json_file_option,
    progress_bar,
    threads_option,
    write_json,
)
from cnndeploy.errors import ArtifactError, CnndeployError

if TYPE_CHECKING:
    from cnndeploy.equivalence.report import EquivalenceReport


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--against", type=PATH, required=True, help="The checkpoint it was exported from.")
@click.option("--runtime", type=RegisteredName("runtimes"), help="[default: the format's own]")
@device_option
@threads_option
@click.option("--tf32", is_flag=True, help="On CUDA, allow TF32, as ONNX Runtime does by default.")
@click.option("--images", type=POSITIVE, help="Use the first N test images.  [default: all 10,000]")
@data_dir_option
@json_file_option
@click.option("--junit", "junit_file", metavar="FILE", help="Write the verdict as JUnit XML, for CI.")
def command(
    artifact: Path,
    against: Path,
    runtime: str | None,
    device: str,
    threads: int | None,
    tf32: bool,
    images: int | None,
    data_dir: Path | None,
    json_file: str | None,
    junit_file: str | None,
) -> None:
    """Verify an exported file against its checkpoint on real test images.

    Exits with 0 if the two are equivalent and with 3 if not. A pass writes the certificate
    ARTIFACT.verified.json beside the file; a failure removes it.

    \b
    Example:
      cnndeploy verify lenet.onnx --against lenet.pt
    """
    from cnndeploy.artifact import check_writable, remove_stale_certificate, write_file
    from cnndeploy.equivalence import verify
    from cnndeploy.equivalence.report import EquivalenceReport
    from cnndeploy.report.junit import junit
    from cnndeploy.report.tables import equivalence_table

    def write(report: EquivalenceReport) -> None:
        if json_file is not None:
            write_json(json_file, report.to_dict())
        if junit_file is not None:
            write_file(junit_file, junit(report).encode())

    def undecided(reason: str) -> EquivalenceReport:
        return EquivalenceReport.undecided(artifact, against, device, reason)

    for target in (json_file, junit_file):
        if target is not None and target != "-":
            check_writable(target, artifact, against)
    if json_file != "-":
        write(undecided("the verification did not end"))  # so that no earlier pass outlives this run
    try:
        with progress_bar(f"Verifying {artifact.name}") as update:
            report = verify(
                artifact,
                against,
                runtime=runtime,
                device=device,
                threads=threads,
                tf32=tf32,
                images=images,
                data_dir=data_dir,
                on_batch=update,
            )
    except CnndeployError as error:
        write(undecided(str(error)))
        remove_stale_certificate(artifact)
        raise
    write(report)
    console_for(json_file).print(equivalence_table([report]))
    _certify(report, quiet=json_file == "-")
    report.require()


def _certify(report: EquivalenceReport, quiet: bool) -> None:
    from cnndeploy.equivalence.certificate import certify

    try:
        if certificate := certify(report, shlex.join(["cnndeploy", *sys.argv[1:]])):
            click.echo(f"Certificate: {certificate}", err=quiet)
    except ArtifactError as error:  # as beside a file on a read-only disk; the verdict stands all the same
        click.echo(f"No certificate: {error}", err=True)
