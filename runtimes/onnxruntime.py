"""ONNX Runtime, on its CPU and CUDA execution providers.

By default ONNX Runtime runs on the CPU, with a line in a log, what it cannot run on the GPU. Here every node's
placement is read back after a session is made, and open_session() refuses a session with a single node elsewhere.

Source: onnxruntime_session_options_config_keys.h, session.disable_cpu_ep_fallback and
session.record_ep_graph_assignment_info.
"""

from __future__ import annotations

import ast
import contextlib
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, installed
from cnndeploy.errors import ArtifactError, DeviceUnavailableError, MissingDependencyError
from cnndeploy.files import is_utf8
from cnndeploy.machine import cuda_driver
from cnndeploy.run import Run
from cnndeploy.runtimes._session import Activation, Arrays, Session
from cnndeploy.specs import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

_DTYPES = {"float": "float32", "double": "float64"}  # the others have numpy's names
# torch's exporter notes these on a node: the modules that it is in, from the network down, and their classes.
_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_FATAL = 4  # of what ONNX Runtime logs: whatever is wrong, it also raises as an error
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# The smallest model that computes something, y = Relu(x) with x float32 (1,), opset 13, to see if a provider runs.
_PROBE = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02'
    b"\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


class OnnxRuntimeSession(Session):
    """An InferenceSession, and the place where ONNX Runtime put each node."""

    _library = "ONNX Runtime"

    def __init__(self, artifact: Artifact, run: Run, session: ort.InferenceSession) -> None:
        inputs, outputs = map(tensor_spec, session.get_inputs()), map(tensor_spec, session.get_outputs())
        super().__init__(artifact, run, inputs, outputs, _CPU if run.device == "cpu" else _CUDA)
        self._session: Any = session
        self._placement = _placement(session)
        self._output_names = [spec.name for spec in self.outputs]

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        names = self._output_names
        gives_back = self.device == "cpu" and self._is_large(feeds)
        values = self._session.run(names, feeds, _giving_back() if gives_back else None)
        # for one output without zip, which would cost an app another microsecond
        return {names[0]: values[0]} if len(names) == 1 else dict(zip(names, values, strict=True))

    def placement(self) -> dict[str, str]:
        """Return the execution provider of each node, by name."""
        return dict(self._placement)

    def settings(self) -> dict[str, Any]:
        """Return what every session does, ONNX Runtime's graph optimisation level, and whether its threads spin."""
        level = str(self._session.get_session_options().graph_optimization_level).rpartition(".")[2]
        return {**super().settings(), "graph_optimization_level": level, "spinning": self.options.spinning}

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
            session = _session(model.SerializeToString(), self.run_as)
            values = session.run(list(modules), feeds)
        except _ort_errors() as error:
            raise ArtifactError(
                f"ONNX Runtime cannot return the inner outputs of {self.artifact.path}: {error}"
            ) from error
        named = zip(modules.values(), values, strict=True)
        return [Activation(module, kind, computed) for (module, kind), computed in named]

    def _release(self) -> None:
        self._session = None


class OnnxRuntimeRuntime:
    """The runtime ONNX Runtime, for ONNX files of any origin."""

    formats = ("onnx",)
    package = "onnxruntime"
    options: ClassVar = {"spinning": (False,), "precision": ("tf32",)}

    def devices(self) -> dict[str, DeviceStatus]:
        """Return the CPU, and each GPU on which the CUDA execution provider really runs."""
        cpu = installed("onnxruntime")
        return {"cpu": cpu} | (_cuda_devices() if cpu.usable else {})

    def open(self, artifact: Artifact, run: Run) -> OnnxRuntimeSession:
        """Make a session that has only the provider asked for."""
        try:
            return OnnxRuntimeSession(artifact, run, _session(_model_at(artifact.path), run))
        except _ort_errors() as error:
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


def _session(model: str | bytes, run: Run) -> Any:
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
    # The default search times algorithms for every new shape, so results may differ from run to run.
    settings = {
        "device_id": run.device.removeprefix("cuda:"),
        "use_tf32": str(int(run.choices.precision == "tf32")),
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return ort.InferenceSession(model, options, providers=[(_CUDA, settings)], enable_fallback=0)


@cache
def _cuda_devices() -> dict[str, DeviceStatus]:
    import onnxruntime as ort

    driver = cuda_driver()
    if _CUDA not in ort.get_available_providers():
        advice = "pip uninstall onnxruntime, then pip install 'cnndeploy[gpu]'"
        return {"cuda": DeviceStatus(False, f"the installed onnxruntime is built without CUDA; {advice}")}
    if not driver.gpus:
        return {"cuda": DeviceStatus(False, driver.reason)}
    said = io.StringIO()  # it prints what it cannot load
    with contextlib.suppress(Exception), contextlib.redirect_stdout(said):
        ort.preload_dlls()  # the CUDA libraries that torch or nvidia packages brought
    missing = said.getvalue().strip().partition("\n")[0]
    return {f"cuda:{index}": _probe(index, missing) for index in range(len(driver.gpus))}


def _probe(index: int, missing: str) -> DeviceStatus:
    """Try the smallest model on a GPU; ``missing`` is a known reason why it might not run."""
    import onnxruntime as ort

    unusable = "the CUDA execution provider does not start"
    # it logs a failed provider to stderr, but here that is an answer and not a fault
    ort.set_default_logger_severity(_FATAL)
    try:
        session = _session(_PROBE, Run(device=f"cuda:{index}", threads=1))
    except _ort_errors() as error:
        return DeviceStatus(False, f"{unusable}; are CUDA and cuDNN installed? ({missing or error})")
    finally:
        ort.set_default_logger_severity(2)
    usable = session.get_providers()[0] == _CUDA
    return DeviceStatus(usable, "" if usable else unusable)


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


def _ort_errors() -> tuple[type[Exception], ...]:
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
    kind = argument.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(argument.name, _DTYPES.get(kind, kind), shape)


RUNTIME = OnnxRuntimeRuntime()
