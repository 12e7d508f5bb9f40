"""TorchScript: the scripted and frozen network, in eval mode, as one archive.

torch.jit is deprecated as a whole and unsupported from Python 3.14; prefer ONNX for new deployments. A
TorchScript archive is a program: open only what you trust.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.devices import last_line
from cnndeploy.errors import ExportError
from cnndeploy.exporters._export import ExportOptions
from cnndeploy.exporters._network import example, network_and_manifest, write
from cnndeploy.formats.torchscript import MANIFEST_FILE
from cnndeploy.machine import quiet
from cnndeploy.specs import Manifest

# The name of a class counts how often the process has scripted it, which would make two exports differ.
_MANGLE = re.compile(rb"___torch_mangle_\d+")
_UNMANGLED = b"___torch_mangle_0"
# Records with source paths, and those that the writer makes itself.
_LEFT_OUT = re.compile(r"\.debug_pkl$|^version$|^\.data/")


class TorchScriptExporter:
    """The exporter of TorchScript: torch.jit.script and freeze, without the machine's paths and counters."""

    format = "torchscript"
    suffix = ".torchscript"
    package = "torch"
    options = frozenset({"input", "simplify"})

    def export(self, checkpoint: Checkpoint, path: Path, options: ExportOptions) -> Artifact:
        """Write the file, reopen it, check it, and only then give it its name."""
        network, manifest = network_and_manifest(checkpoint, options)
        with quiet():  # torch warns that torch.jit is deprecated, and of annotations in its own GraphModule
            frozen = _frozen(network, manifest)
            archive = io.BytesIO()
            torch.jit.save(frozen, archive, _extra_files={MANIFEST_FILE: manifest.to_json()})
            content = _cleaned(archive.getvalue())
            return write(path, content, manifest, lambda written: _faults(written, manifest, network))


def _frozen(network: torch.nn.Module, manifest: Manifest) -> Any:
    """Script a network and freeze it; trace it if that fails, or returns something else.

    torchvision's GoogLeNet returns a tuple if it is scripted. A trace has the branches that the example took; the
    file's checks see whether it holds for other batches. Only rewrites change the layers: freezing does not.
    """
    images = example(manifest, 2)
    with torch.no_grad():
        with contextlib.suppress(Exception):  # a forward() may do what TorchScript does not know
            frozen = torch.jit.freeze(torch.jit.script(network), optimize_numerics=False)
            if type(frozen(images)) is type(network(images)):
                return frozen
        try:
            return torch.jit.freeze(torch.jit.trace(network, images), optimize_numerics=False)
        except Exception as error:
            raise ExportError(f"torch cannot script or trace this network: {last_line(error)}") from error


def _cleaned(archive: bytes) -> bytes:
    """Return the archive without source paths, and with class names that do not depend on the process."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    mangled = {name for record in reader.get_all_records() for name in _MANGLE.findall(record.encode())}
    if len(mangled) > 1:  # two classes would get the same name
        raise ExportError(f"the frozen network still has {len(mangled)} classes; freezing should leave one")
    cleaned = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(cleaned)
    # else it claims an old version, and torch would read what has changed since, such as gelu, in the old sense
    version = next(name for name in ("version", ".data/version") if name in reader.get_all_records())
    writer.set_min_version(int(reader.get_record(version)))
    for name in reader.get_all_records():
        if _LEFT_OUT.search(name):
            continue
        record = reader.get_record(name)
        if name.startswith("code/") or name.endswith(".pkl"):
            record = _MANGLE.sub(_UNMANGLED, record)
        writer.write_record(_MANGLE.sub(_UNMANGLED, name.encode()).decode(), record, len(record))
    writer.write_end_of_file()
    return cleaned.getvalue()


def _faults(path: Path, manifest: Manifest, network: torch.nn.Module) -> list[str]:
    module: Any = torch.jit.load(str(path), map_location="cpu")
    has_dropout = any("dropout" in node.kind() for node in module.inlined_graph.nodes())
    faults = ["it contains dropout"] * has_dropout + ["it is not frozen"] * bool(list(module.parameters()))
    with torch.inference_mode():
        for batch in (1, 3):
            images = example(manifest, batch, side=20 + batch)
            try:
                results = [run(images) for run in (module, network)]
            except Exception as error:  # noqa: BLE001 - which becomes a fault
                faults.append(f"it fails on a batch of {batch}: {last_line(error)}")
                continue
            outputs = (result if isinstance(result, tuple) else (result,) for result in results)
            for spec, given, expected in zip(manifest.outputs, *outputs, strict=True):
                if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-4, atol=1e-5):
                    faults.append(f"the {spec.name} of a batch of {batch} differ from the network's")
    return faults


EXPORTER = TorchScriptExporter()
