"""Eager PyTorch: runs a checkpoint as Python calls it, layer by layer. The reference for every other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, DeviceUnavailableError
from cnndeploy.runtimes import Activation, Arrays, DeviceStatus, RuntimeOptions
from cnndeploy.runtimes._torch import TorchSession
from cnndeploy.torch_device import open_device, torch_devices

if TYPE_CHECKING:
    import torch


class EagerSession(TorchSession):
    """A checkpoint's network in eval mode."""

    def placement(self) -> dict[str, str]:
        """Parameter name to device."""
        module = self._module
        return {} if module is None else {name: str(p.device) for name, p in module.named_parameters()}

    def activations(self, feeds: Arrays) -> list[Activation]:
        """By forward hooks; a container that gives what its last module gave is left out."""
        assert self._module is not None  # noqa: S101 - as for run()
        found: dict[str, Activation] = {}
        given: list[torch.Tensor] = []

        def keep(name: str, module: torch.nn.Module, output: torch.Tensor) -> None:
            is_leaf = next(module.children(), None) is None
            if is_leaf or not any(output is each for each in given):
                given.append(output)
                found[name] = Activation(name, type(module).__name__, output.cpu().clone().numpy())

        hooks = [
            module.register_forward_hook(lambda module, _, output, name=name: keep(name, module, output))
            for name, module in self._module.named_modules()
            if name
        ]
        try:
            self.run(feeds)
        finally:
            for hook in hooks:
                hook.remove()
        return list(found.values())


class OracleSession(EagerSession):
    """The same network computed in float64: takes float64 images, gives float64 logits."""

    def __init__(
        self, artifact: Artifact, module: torch.nn.Module, device: torch.device, threads: int
    ) -> None:
        super().__init__(artifact, module, device, threads)
        self.inputs = tuple(replace(spec, dtype="float64") for spec in self.inputs)


def open_simplified(artifact: Artifact, *, threads: int) -> EagerSession:
    """Open a checkpoint on the CPU as it is exported, simplified. Raises what :meth:`EagerRuntime.open` raises."""
    device = open_device("cpu", "eager", threads)
    return EagerSession(artifact, network_of(artifact, device, simplified=True), device, threads)


def open_oracle(
    artifact: Artifact, *, threads: int, weights: str = "float32", simplified: bool = False
) -> OracleSession:
    """Open a checkpoint on the CPU in float64, whose rounding is a billionth of float32's.

    ``weights`` names the dtype that its weights, ``simplified`` or its own, are rounded to first. Raises what
    :meth:`EagerRuntime.open` raises.
    """
    import torch

    device = open_device("cpu", "eager", threads)
    network = network_of(artifact, device, simplified=simplified).to(getattr(torch, weights)).double()
    return OracleSession(artifact, network, device, threads)


def open_tf32(artifact: Artifact, *, threads: int, simplified: bool = False) -> EagerSession:
    """Open a checkpoint on the CPU as a GPU's TF32 computes it: what is multiplied is rounded to 10 bits first.

    Sums are float32's, as in TF32. Raises what :meth:`EagerRuntime.open` raises.

    Source: NVIDIA A100 Tensor Core GPU architecture, 2020, on TF32.
    """
    import torch

    device = open_device("cpu", "eager", threads)
    network = network_of(artifact, device, simplified=simplified)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.weight.data = _to_tf32(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (_to_tf32(inputs[0]),))
    return EagerSession(artifact, network, device, threads)


def _to_tf32(values: torch.Tensor) -> torch.Tensor:
    """float32 rounded to the nearest number with 10 bits of mantissa, to even where two are as near."""
    import torch

    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


class EagerRuntime:
    """Opens checkpoints."""

    formats = ("checkpoint",)
    package = "torch"
    options: frozenset[str] = frozenset()

    def devices(self) -> dict[str, DeviceStatus]:
        """As torch sees them."""
        return torch_devices()

    def open(
        self, artifact: Artifact, *, device: str, threads: int, tf32: bool, options: RuntimeOptions
    ) -> EagerSession:
        """Build the network, load its weights, move it to ``device``."""
        del options  # it has none
        torch_device = open_device(device, "eager", threads, tf32)
        return EagerSession(artifact, network_of(artifact, torch_device), torch_device, threads, tf32)


def network_of(artifact: Artifact, device: torch.device, *, simplified: bool = False) -> torch.nn.Module:
    """A checkpoint's network in eval mode, on ``device``, as it is or ``simplified`` as exporters do."""
    import torch

    from cnndeploy.checkpoint import Checkpoint
    from cnndeploy.simplification import simplify

    checkpoint = Checkpoint.load(artifact.path)
    if checkpoint.sha256 != artifact.sha256:
        raise ArtifactError(f"{artifact.path} has changed since it was opened; open it anew")
    network = checkpoint.network()
    if simplified:
        network, _ = simplify(network)
    try:
        return network.to(device)
    except torch.OutOfMemoryError as error:
        raise DeviceUnavailableError(f"{artifact.path} does not fit into the memory of {device}") from error


RUNTIME = EagerRuntime()
