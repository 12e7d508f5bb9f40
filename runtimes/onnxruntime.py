"""ONNX Runtime, on its CPU and CUDA execution providers.

By default ONNX Runtime runs on the CPU, with a line in a log, what it cannot run on the GPU. Here every node's
placement is read back after a session is made, and open_session() refuses a session with a single node elsewhere.

Source: onnxruntime_session_options_config_keys.h, session.disable_cpu_ep_fallback and
session.record_ep_graph_assignment_info.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, gpu_status, gpu_statuses, installed
from cnndeploy.errors import ArtifactError, DeviceUnavailableError, MissingDependencyError
from cnndeploy.files import is_utf8
from cnndeploy.run import Run
from cnndeploy.runtimes._bound import BoundCalls
from cnndeploy.runtimes._cuda import INSTALL, PROBE, PROVIDER, load_libraries, provider_options, wait_for
from cnndeploy.runtimes._graphs import GraphCalls
from cnndeploy.runtimes._on_device import dtype_of, run_bound, taken
from cnndeploy.runtimes._session import Activation, Arrays, DeviceArray, Session
from cnndeploy.specs import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

# torch's exporter notes these on a node: the modules that it is in, from the network down, and their classes.
_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_FATAL = 4  # of what ONNX Runtime logs: whatever is wrong, it also raises as an error
_CPU = "CPUExecutionProvider"


class OnnxRuntimeSession(Session):
    """An InferenceSession, and the place where ONNX Runtime put each node."""

    _library = "ONNX Runtime"

    def __init__(self, artifact: Artifact, run: Run, session: ort.InferenceSession) -> None:
        inputs, outputs = map(tensor_spec, session.get_inputs()), map(tensor_spec, session.get_outputs())
        super().__init__(artifact, run, inputs, outputs, _CPU if run.device == "cpu" else PROVIDER)
        self._session: Any = session
        self._placement = _placement(session)
        self._output_names = [spec.name for spec in self.outputs]
        binds = run.device == "cpu" and len(self.inputs) == 1
        self._bound = BoundCalls(session, self._output_names) if binds else None
        self._graphs = self._with_graphs(session) if run.choices.cuda_graph else None

    def _with_graphs(self, session: ort.InferenceSession) -> GraphCalls:
        if len(self.inputs) != 1:
            raise ArtifactError(
                f"{self.artifact.path} has {len(self.inputs)} inputs; CUDA graphs are for files with one"
            )
        return GraphCalls(session, self.device, self.inputs[0], self.outputs)

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        names, bound, graphs = self._output_names, self._bound, self._graphs
        if graphs is not None:
            values: list[NDArray[Any]] | None = graphs.run(feeds)
        else:
            values = None if bound is None else bound.run(feeds)
        if values is None:
            gives_back = self.device == "cpu" and self._is_large(feeds)
            values = self._session.run(names, feeds, _giving_back() if gives_back else None)
            if bound is not None:
                bound.bind(feeds, values)
        # for one output without zip, which would cost an app another microsecond
        return {names[0]: values[0]} if len(names) == 1 else dict(zip(names, values, strict=True))

    def _run_on_device(self, feeds: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Run without a CUDA graph, which would read and write other memory than that of the arrays."""
        if self.device == "cpu":
            return super()._run_on_device(feeds)
        work = partial(self._ran_on_device, feeds)
        return work() if self._graphs is None else self._graphs.without(work)

    def _ran_on_device(self, feeds: Mapping[str, DeviceArray], options: Any = None) -> dict[str, DeviceArray]:
        names, given = self._output_names, taken(feeds, self.inputs, self.device)
        try:
            wait_for(self.device)
            values = run_bound(self._session, given, names, self.device, options)
        except Exception as error:  # as in run()
            raise self._failure({name: value.shape() for name, value in given.items()}, error) from error
        return dict(zip(names, values, strict=True))

    def placement(self) -> dict[str, str]:
        """Return the execution provider of each node, by name."""
        return dict(self._placement)

    def settings(self) -> dict[str, Any]:
        """Return what every session does, ONNX Runtime's graph optimisation level, and whether its threads spin.

        On CUDA also the provider's options, as they are asked for: without ``use_tf32`` cuDNN may still round to TF32
        if it has no other way to compute a convolution.
        """
        level = str(self._session.get_session_options().graph_optimization_level).rpartition(".")[2]
        settings = {
            **super().settings(),
            "graph_optimization_level": level,
            "spinning": self.options.spinning,
        }
        if self.device != "cpu":
            settings["provider_options"] = self._session.get_provider_options()[PROVIDER]
        return settings

    def activations(self, feeds: Arrays) -> list[Activation]:
        """Run a copy of the file with more outputs, one for each module that torch's exporter noted on the nodes."""
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise MissingDependencyError("onnx") from error
        model = onnx.load(self.artifact.path)
        modules = _modules(model.graph)
        if not modules:  # for an empty list of names ONNX Runtime returns all outputs
            return []
        outputs = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in modules.keys() - outputs)
        try:
            content = model.SerializeToString()
            without = replace(self.run_as, options=replace(self.options, cuda_graph=False))
            session = _session(content, without, is_float16=_is_float16(self.artifact))
            values = session.run(list(modules), feeds)
        except ort_errors() as error:
            raise ArtifactError(
                f"ONNX Runtime cannot return the inner outputs of {self.artifact.path}: {error}"
            ) from error
        named = zip(modules.values(), values, strict=True)
        return [Activation(module, kind, computed) for (module, kind), computed in named]

    def _release(self) -> None:
        self._session = self._bound = self._graphs = None


class OnnxRuntimeRuntime:
    """The runtime ONNX Runtime, for ONNX files of any origin."""

    formats = ("onnx",)
    package = "onnxruntime"
    options: ClassVar = {"spinning": (False,), "precision": ("tf32",), "cuda_graph": (True,)}

    def devices(self) -> dict[str, DeviceStatus]:
        """Return the CPU, and each GPU on which the CUDA execution provider really computes."""
        cpu = self.status("cpu")
        return {"cpu": cpu} | (gpu_statuses(self.status) if cpu.usable else {})

    def status(self, device: str) -> DeviceStatus:
        """Return whether one device works, and start nothing on another."""
        cpu = installed("onnxruntime")
        if device == "cpu" or not cpu.usable:
            return cpu
        import onnxruntime as ort

        if device.startswith("cuda:") and PROVIDER not in ort.get_available_providers():
            advice = "pip uninstall onnxruntime, then pip install 'cnndeploy[gpu]'"
            return DeviceStatus(False, f"the installed onnxruntime is built without CUDA; {advice}")
        gpu = gpu_status(device)
        return _probe(device) if gpu.usable else gpu

    def open(self, artifact: Artifact, run: Run) -> OnnxRuntimeSession:
        """Make a session that has only the provider asked for."""
        try:
            session = _session(_model_at(artifact.path), run, is_float16=_is_float16(artifact))
            return OnnxRuntimeSession(artifact, run, session)
        except ort_errors() as error:
            if run.device != "cpu":
                raise DeviceUnavailableError(
                    f"ONNX Runtime cannot run all of {artifact.path} on {run.device}: {error}. "
                    "Nothing was run on another device instead."
                ) from error
            raise ArtifactError(f"ONNX Runtime cannot open {artifact.path}: {error}") from error


@cache
def _giving_back() -> ort.RunOptions:
    """Return options by which ONNX Runtime gives back the memory that a run took beyond what it had at first.

    Source: onnxruntime_run_options_config_keys.h, memory.enable_memory_arena_shrinkage.
    """
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _model_at(path: Path) -> str | bytes:
    """Return a model's path, or its content if the name is not UTF-8, which the binding to Python does not take."""
    return str(path) if is_utf8(path) else path.read_bytes()


def _is_float16(artifact: Artifact) -> bool:
    manifest = artifact.manifest
    return manifest is not None and (manifest.quantization or {}).get("precision") == "float16"


def _session(model: str | bytes, run: Run, *, is_float16: bool = False) -> Any:
    """Make an InferenceSession on one provider, which may not pass nodes to another; a GPU is ``cuda:N``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = run.thread_count
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(run.choices.spinning)))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # The wrapper in Python would print the error on standard output, and try again on the CPU.
    if run.device == "cpu":
        return ort.InferenceSession(model, options, providers=[_CPU], enable_fallback=0)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = (PROVIDER, provider_options(run, is_float16=is_float16))
    return ort.InferenceSession(model, options, providers=[provider], enable_fallback=0)


@cache
def _probe(device: str) -> DeviceStatus:
    """Compute the smallest convolution on a GPU, ``cuda:N``, once the libraries that this takes are loaded."""
    unusable = "the CUDA execution provider does not start"
    if missing := load_libraries():  # it would also log that to standard error
        return DeviceStatus(False, f"{unusable}: {missing} cannot be loaded; {INSTALL}")
    try:
        session = _session(PROBE, Run(device=device, threads=1))
        if session.get_providers()[0] != PROVIDER:
            return DeviceStatus(False, unusable)
        session.run(None, {"x": np.ones((1, 1, 1, 1), np.float32)})
    except ort_errors() as error:
        told = re.search(r"(?:CUD\w+ failure|This .*cuDNN|cuDNN is).*", str(error))
        reason = f"{told[0] if told else error!s:.200}"
        return DeviceStatus(False, f"{unusable}; are all of CUDA and cuDNN installed? {INSTALL} ({reason})")
    return DeviceStatus(True)


def _placement(session: Any) -> dict[str, str]:
    placed: dict[str, str] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        for node in subgraph.get_nodes():
            name = node.name or node.op_type
            placed[name if name not in placed else f"{name} #{len(placed)}"] = subgraph.ep_name
    return placed


def _modules(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Map the name of each value that a module returns to the module's path and class.

    A module returns the last value that is computed within it. If a container returns what its last module returned,
    the value belongs to that module. For example, from these nodes with their scopes

        conv  -> a   ["", "features", "features.0", "conv2d"]
        relu  -> b   ["", "features", "features.1", "relu"]

    the result is a: features.0 and b: features.1; features, which also returns b, is left out.
    """
    last: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        # not strict, because notes may be strange
        inner = zip(_listed(notes.get(_SCOPES)), _listed(notes.get(_CLASSES)), strict=False)
        for scope, name in list(inner)[:-1]:  # the last entry is the node itself
            if scope:  # the network has no name, and is not noted at all if torch.fx rebuilt it
                last[scope] = (node.output[0], name.rpartition(".")[2])
    deepest_last = sorted(last.items(), key=lambda entry: entry[0].count("."))
    modules = {value: (scope, kind) for scope, (value, kind) in deepest_last}
    return {node.output[0]: modules[node.output[0]] for node in graph.node if node.output[0] in modules}


def _listed(note: str | None) -> list[str]:
    """Parse a note as a list of strings; return an empty list if it is something else."""
    try:
        values = ast.literal_eval(note or "[]")
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return values if isinstance(values, list) and all(isinstance(each, str) for each in values) else []


def ort_errors() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's exceptions, which have no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = (kind for kind in vars(state).values() if isinstance(kind, type))
    return (*(kind for kind in kinds if issubclass(kind, Exception)), RuntimeError, ValueError)


def tensor_spec(argument: Any) -> TensorSpec:
    """Describe an input or output of an InferenceSession."""
    # some exporters write 0 or -1 for an axis of any length
    fixed = [isinstance(axis, int) and axis > 0 for axis in argument.shape]
    named = [axis if isinstance(axis, str) and axis else "unknown" for axis in argument.shape]
    shape = tuple(
        axis if is_fixed else name for axis, is_fixed, name in zip(argument.shape, fixed, named, strict=True)
    )
    return TensorSpec(argument.name, dtype_of(argument.type), shape)


RUNTIME = OnnxRuntimeRuntime()
