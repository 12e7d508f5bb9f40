"""Run: how a file is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from cnndeploy.machine import usable_cpus

Precision = Literal["float32", "tf32", "bfloat16", "float16", "int8", "float64"]
"""What is computed in or stored as. ``tf32`` keeps 10 of float32's 23 bits of each factor, ``bfloat16`` 7."""
Threads = int | Literal["auto"]
MOST_THREADS = 256


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What some runtimes let a user choose; a runtime's ``options`` say which fields and values it knows.

    ``spinning``: whether threads that wait for work spin, which wakes them sooner and keeps their CPUs busy.
    ``precision``: what is computed in. In ``bfloat16`` a float32 file is lossy; ``tf32``, on CUDA, has a wider
    tolerance than float32.

    >>> cnndeploy.RuntimeOptions(spinning=False).changed
    {'spinning': False}
    """

    spinning: bool = True
    precision: Precision = "float32"

    @property
    def lossy(self) -> bool:
        """Whether a float32 file run with these options gives up accuracy on purpose."""
        return self.precision not in ("float32", "tf32")

    @property
    def changed(self) -> dict[str, Any]:
        """JSON-ready: the fields that differ from their defaults."""
        defaults = asdict(_DEFAULTS)
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    @classmethod
    def of(cls, changed: Mapping[str, Any]) -> Self:
        """Read what :attr:`changed` returned; raise ValueError if it is something else."""
        allowed = {"spinning": (True, False), "precision": get_args(Precision)}
        if not all(value in allowed.get(name, ()) for name, value in changed.items()):
            raise ValueError(f"not options of a runtime: {changed}")
        return cls(**changed)

    def __str__(self) -> str:
        return "".join(f", {name} {value}" for name, value in self.changed.items())


_DEFAULTS = RuntimeOptions()


@dataclass(frozen=True, slots=True)
class Run:
    """How a file is run. What is empty or None is as its deployment's plan says, and without a plan the default.

    ``runtime`` is a name in ``cnndeploy list``, by default the format's own. ``device`` is ``cpu``, the default,
    ``cuda`` or ``cuda:N``; no other device is used instead. ``threads`` are CPU threads for one call, by default all
    that the process may use; ``auto`` takes one if more are no faster.

    >>> cnndeploy.Run(threads=1).over(cnndeploy.Run("openvino", "cpu", 2))
    Run(runtime='openvino', device='cpu', threads=1, options=None)
    """

    runtime: str = ""
    device: str = ""
    threads: Threads | None = None
    options: RuntimeOptions | None = None

    def over(self, planned: Run) -> Run:
        """Fill what is left open from ``planned``; take its options only if its runtime is kept."""
        keeps_runtime = self.runtime in ("", planned.runtime)
        threads = planned.threads if self.threads is None else self.threads
        options = self.options or (planned.options if keeps_runtime else None)
        return Run(self.runtime or planned.runtime, self.device or planned.device, threads, options)

    @property
    def choices(self) -> RuntimeOptions:
        """The options, or the default ones."""
        return self.options or _DEFAULTS

    @property
    def thread_count(self) -> int:
        """The number of threads; all that the process may use if it is open."""
        return self.threads if isinstance(self.threads, int) else usable_cpus()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; of the options only those that differ from their defaults."""
        return {**asdict(self), "options": self.choices.changed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` returned; raise ValueError or KeyError if it is something else."""
        texts, threads = (values["runtime"], values["device"]), values["threads"]
        if not all(isinstance(text, str) for text in texts) or type(threads) not in (int, str, type(None)):
            raise ValueError(f"not a runtime, device and number of threads: {values}")
        return cls(*texts, threads, RuntimeOptions.of(values["options"]))

    def __str__(self) -> str:
        return f"{self.runtime} on {self.device}, {self.threads} threads{self.choices}"
