"""Runtime: one way to open artifacts, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus
from cnndeploy.registry import Registry
from cnndeploy.run import Run
from cnndeploy.runtimes._session import Session


class Runtime(Protocol):
    """One way to run artifacts; the module's ``RUNTIME`` is an instance.

    Its module imports without the package it drives, so that ``formats`` can be read and ``cnndeploy list`` can say
    what is missing.
    """

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats that it opens."""

    @property
    def package(self) -> str:
        """The import name of the package that it drives."""

    @property
    def options(self) -> Mapping[str, tuple[Any, ...]]:
        """The fields of RuntimeOptions that it heeds, each with the values beside the default that it knows."""

    def devices(self) -> dict[str, DeviceStatus]:
        """Return every device this runtime knows, and whether it works on this machine; never raise."""

    def open(self, artifact: Artifact, run: Run) -> Session:
        """Open an artifact.

        Args:
            artifact: Of one of ``formats``.
            run: How to run it, every field filled in. ``device`` is ``cpu``, ``cuda`` or ``cuda:N``. What differs from
                the default in ``options`` is among this runtime's ``options``.

        Raises:
            DeviceUnavailableError: The device does not work here; there is no fallback.
            MissingDependencyError: The runtime's package is not installed.
            ArtifactError: The runtime cannot open the file.
        """


RUNTIMES: Registry[Runtime] = Registry("runtimes", "RUNTIME")
