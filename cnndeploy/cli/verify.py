"""``cnndeploy verify``: does an exported file compute what its checkpoint computes?"""

from __future__ import annotations

from pathlib import Path

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
from cnndeploy.errors import CnndeployError


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--against", type=PATH, required=True, help="The checkpoint it was exported from.")
@click.option("--runtime", type=RegisteredName("runtimes"), help="[default: the first that opens the format]")
@device_option
@threads_option
@click.option("--images", type=POSITIVE, help="Use the first N test images.  [default: all 10,000]")
@data_dir_option
@json_file_option
def command(
    artifact: Path,
    against: Path,
    runtime: str | None,
    device: str,
    threads: int | None,
    images: int | None,
    data_dir: Path | None,
    json_file: str | None,
) -> None:
    """Verify an exported file against its checkpoint on real test images.

    Exits with 0 if the two are equivalent and with 3 if not.

    \b
    Example:
      cnndeploy verify lenet.onnx --against lenet.pt
    """
    from cnndeploy.artifact import check_writable
    from cnndeploy.equivalence import verify
    from cnndeploy.equivalence.report import EquivalenceReport
    from cnndeploy.report.tables import equivalence_table

    def write(report: EquivalenceReport) -> None:
        if json_file is not None:
            write_json(json_file, report.to_dict())

    def undecided(reason: str) -> EquivalenceReport:
        return EquivalenceReport.undecided(artifact, against, device, reason)

    if json_file is not None and json_file != "-":
        check_writable(json_file, artifact, against)
        write(undecided("the verification did not end"))  # so that no earlier pass outlives this run
    try:
        with progress_bar(f"Verifying {artifact.name}") as update:
            report = verify(
                artifact,
                against,
                runtime=runtime,
                device=device,
                threads=threads,
                images=images,
                data_dir=data_dir,
                on_batch=update,
            )
    except CnndeployError as error:
        write(undecided(str(error)))
        raise
    write(report)
    console_for(json_file).print(equivalence_table([report]))
    report.require()
