"""``cnndeploy list``: what there is, and what works on this machine."""

from __future__ import annotations

from typing import Any

import click

from cnndeploy import registry
from cnndeploy.cli import _common as common
from cnndeploy.devices import DeviceStatus
from cnndeploy.errors import MissingDependencyError


@click.command()
@common.json_flag
def command(as_json: bool) -> None:
    """List architectures, exporters, runtimes and devices.

    For each runtime and device it says whether it works on this machine, and if not, why.

    \b
    Example:
      cnndeploy list --json
    """
    facts: dict[str, Any] = {
        "architectures": registry.names("architectures"),
        "exporters": registry.names("exporters"),
        "runtimes": {name: {"devices": _devices(name)} for name in registry.names("runtimes")},
    }
    if as_json:
        common.write_json("-", facts)
        return
    common.say(f"Architectures: {', '.join(facts['architectures'])}")
    common.say(f"Exporters: {', '.join(facts['exporters'])}")
    common.say("Runtimes:")
    for runtime, of_runtime in facts["runtimes"].items():
        for name, status in of_runtime["devices"].items():
            answer = "usable" if status.usable else f"not usable: {status.reason}"
            common.say(f"  {runtime} on {name}: {answer}")


def _devices(runtime: str) -> dict[str, DeviceStatus]:
    from cnndeploy.runtimes import RUNTIMES

    try:
        return RUNTIMES.get(runtime).devices()
    except MissingDependencyError as error:  # a third party's runtime whose package is gone
        return {"cpu": DeviceStatus(False, str(error))}
