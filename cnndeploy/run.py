"""Run: how a file is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

from cnndeploy.machine import usable_cpus

Precision = Literal["float32", "tf32", "bfloat16", "float16", "int8", "float64"]
"""The format of numbers. ``tf32`` keeps 10 of float32's 23 bits of each factor of a product, ``bfloat16`` keeps 7."""
Threads = int | Literal["auto"]
MOST_THREADS = 256


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Options of some runtimes; a runtime's ``options`` say which fields and values it knows.

    ``spinning``: threads that wait for work spin, which wakes them sooner and keeps their CPUs busy.
    ``precision``: the format of numbers in computation. A float32 file is lossy in ``bfloat16``; ``tf32``, on CUDA, has
    a wider tolerance than float32.
    ``cuda_graph``: what a GPU does for a call is recorded once for each shape, and replayed.

    >>> cnndeploy.RuntimeOptions(spinning=False).changed
    {'spinning': False}
    """

    spinning: bool = True
    precision: Precision = "float32"
    cuda_graph: bool = False

    @property
    def numbers(self) -> tuple[str, bool]:
        """The options that change logits; spinning does not."""
        return self.precision, self.cuda_graph

    @property
    def lossy(self) -> bool:
        """Whether these options trade a float32 file's accuracy for speed."""
        return self.precision not in ("float32", "tf32")

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, JSON-ready."""
        defaults = asdict(_DEFAULTS)
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    @classmethod
    def of(cls, changed: Mapping[str, Any]) -> Self:
        """Read what :attr:`changed` returned; raise ValueError if it is something else."""
        allowed = {"spinning": (True, False), "precision": get_args(Precision), "cuda_graph": (True, False)}
        if not all(value in allowed.get(name, ()) for name, value in changed.items()):
            raise ValueError(f"not options of a runtime: {changed}")
        return cls(**changed)

    def __str__(self) -> str:
        return "".join(f", {name} {value}" for name, value in self.changed.items())


_DEFAULTS = RuntimeOptions()


@dataclass(frozen=True, slots=True)
class Run:
    """How a file is run. Values that are empty or None come from its deployment's plan, or without a plan are defaults.

    ``runtime`` is a name in ``cnndeploy list``, by default the format's own. ``device`` is ``cpu``, the default,
    ``cuda`` or ``cuda:N``; no other device is used instead. ``threads`` is the number of CPU threads for one call, by
    default all that the process may use; ``auto`` takes one if more are no faster. ``options`` replace all of the
    plan's; ``precision`` replaces that option alone.

    >>> print(cnndeploy.Run(threads=1).over(cnndeploy.Run("openvino", "cpu", 2)))
    openvino on cpu, 1 threads
    """

    runtime: str = ""
    device: str = ""
    threads: Threads | None = None
    options: RuntimeOptions | None = None
    precision: Precision | None = None

    def over(self, planned: Run) -> Run:
        """Fill what is left open from ``planned``; take its options only if its runtime and kind of device are kept."""
        kinds = [device.partition(":")[0] for device in (self.device, planned.device)]
        is_kept = self.runtime in ("", planned.runtime) and kinds[0] in ("", kinds[1])
        threads = planned.threads if self.threads is None else self.threads
        options = self.options or (
            (planned.choices if planned.precision else planned.options) if is_kept else None
        )
        if self.precision is not None:
            options = Run(options=options, precision=self.precision).choices
        return Run(self.runtime or planned.runtime, self.device or planned.device, threads, options)

    @property
    def choices(self) -> RuntimeOptions:
        """The options, or the default ones, with ``precision`` among them."""
        options = self.options or _DEFAULTS
        return options if self.precision is None else replace(options, precision=self.precision)

    @property
    def thread_count(self) -> int:
        """The number of threads; all that the process may use if it is open."""
        return self.threads if isinstance(self.threads, int) else usable_cpus()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; of the options only those that differ from their defaults."""
        return {
            "runtime": self.runtime,
            "device": self.device,
            "threads": self.threads,
            "options": self.choices.changed,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` returned; raise ValueError or KeyError if it is something else."""
        texts, threads = (values["runtime"], values["device"]), values["threads"]
        if not all(isinstance(text, str) for text in texts) or type(threads) not in (int, str, type(None)):
            raise ValueError(f"not a runtime, device and number of threads: {values}")
        return cls(*texts, threads, RuntimeOptions.of(values["options"]))

    def __str__(self) -> str:
        return f"{self.runtime} on {self.device}, {self.threads} threads{self.choices}"
