"""ExecuTorch: the network as a program for phones and C++, its layers lowered to XNNPACK.

The batch is bounded: a program plans its memory for the largest one. XNNPACK keeps what it computes itself out of that
plan, and a caller's image too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.devices import last_line
from cnndeploy.errors import CnndeployError, ExportError
from cnndeploy.exporters._export import ExportOptions
from cnndeploy.exporters._network import example, network_and_manifest, write
from cnndeploy.formats.executorch import MANIFEST_METHOD, Forward, forward_of
from cnndeploy.machine import quiet
from cnndeploy.specs import Manifest

if TYPE_CHECKING:
    from cnndeploy.runtimes.executorch import Program

LARGEST_BATCH = 256  # the largest that verification runs

# Most of a network's work is in these; the portable kernels of them are many times slower than XNNPACK's.
_HEAVY = ("aten::convolution", "aten::addmm", "aten::linear", "aten::mm")


class ExecuTorchExporter:
    """The exporter of ExecuTorch: torch.export, with all that XNNPACK can compute delegated to it."""

    format = "executorch"
    suffix = ".pte"
    package = "executorch"
    options = frozenset({"simplify"})

    def export(self, checkpoint: Checkpoint, path: Path, options: ExportOptions) -> Artifact:
        """Write the file, reopen it, check it, and only then give it its name."""
        network, manifest = network_and_manifest(checkpoint, options)
        with quiet():  # it warns of what its own dependencies do
            content = _lowered(network, manifest)
            return write(path, content, manifest, lambda written: _faults(written, manifest, network))


def _lowered(network: torch.nn.Module, manifest: Manifest) -> bytes:
    """Return the program's bytes."""
    # A trace of a small batch would be for small batches alone: torch picks among convolutions by the batch's size.
    images = torch.zeros(manifest.input.with_batch(LARGEST_BATCH))
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass

        program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={MANIFEST_METHOD: manifest.to_json()},
        )
        # The caller's image is used as it lies, so memory for the largest batch of images is not kept.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        lowered: Any = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
        return bytes(lowered.buffer)
    except Exception as error:  # a package is missing, or a forward() does what torch.export does not know
        raise ExportError(f"ExecuTorch cannot export this network: {last_line(error)}") from error


def _faults(path: Path, manifest: Manifest, network: torch.nn.Module) -> list[str]:
    from cnndeploy.runtimes.executorch import Program  # the layer below

    try:
        forward, program = forward_of(path), Program(path)
    except (CnndeployError, ValueError, RuntimeError) as error:  # a limit, or what the library says
        return [f"it cannot be opened: {last_line(error)}"]
    with contextlib.closing(program):
        return _faults_of(program, forward, manifest, network)


def _faults_of(program: Program, forward: Forward, manifest: Manifest, network: torch.nn.Module) -> list[str]:
    faults = list[str]()
    if slow := sorted({part for part in forward.parts if part.partition(".")[0] in _HEAVY}):
        faults.append(f"XNNPACK does not take over its {', '.join(slow)}, which would be slow")
    if (forward.largest_batch, forward.fixed_batch) != (LARGEST_BATCH, False):
        faults.append(f"it takes batches of {forward.largest_batch}, not of 1 to {LARGEST_BATCH}")
        return faults
    with torch.inference_mode():
        for batch in (1, 3):
            images = example(manifest, batch)
            try:
                (given,), expected = program.run(images), network(images)
            except Exception as error:  # noqa: BLE001 - which becomes a fault
                faults.append(f"it fails on a batch of {batch}: {last_line(error)}")
                continue
            if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-4, atol=1e-5):
                faults.append(f"the {manifest.output.name} of a batch of {batch} differ from the network's")
    return faults


EXPORTER = ExecuTorchExporter()
