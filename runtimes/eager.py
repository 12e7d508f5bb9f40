"""Eager PyTorch: runs a checkpoint layer by layer from Python. The reference for all other runtimes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cnndeploy.artifact import Artifact
from cnndeploy.errors import DeviceUnavailableError
from cnndeploy.run import Precision
from cnndeploy.runtimes._session import Activation, Arrays
from cnndeploy.runtimes._torch import TorchRuntime, TorchSession

if TYPE_CHECKING:
    import torch


class EagerSession(TorchSession):
    """A checkpoint's network in eval mode."""

    def placement(self) -> dict[str, str]:
        """Return parameter name to device."""
        module = self._module
        return {} if module is None else {name: str(p.device) for name, p in module.named_parameters()}

    def activations(self, feeds: Arrays) -> list[Activation]:
        """Use forward hooks; leave out a container that returns what its last module returned.

        A module that returns several tensors is left out, because no file says which is which. One that is called
        several times stands there as often.
        """
        import torch

        assert self._module is not None  # noqa: S101 - as for run()
        activations: list[Activation] = []
        seen: list[torch.Tensor] = []

        def keep(name: str, module: torch.nn.Module, output: object) -> None:
            output = _only_tensor(output)
            is_leaf = next(module.children(), None) is None
            if output is not None and (is_leaf or not any(output is other for other in seen)):
                seen.append(output)
                # copied, because what comes next may change it in place
                values = output.cpu().clone().numpy()
                activations.append(Activation(name, type(module).__name__, values))

        hooks = [
            module.register_forward_hook(lambda module, _, output, name=name: keep(name, module, output))
            for name, module in self._module.named_modules()
            if name and not isinstance(module, torch.nn.Identity)  # which computes nothing
        ]
        graphs, self._graphs = self._graphs, None  # a replay calls no module
        try:
            self.run(feeds)
        finally:
            self._graphs = None if self._closed else graphs
            for hook in hooks:
                hook.remove()
        return activations

    def computed(
        self, precision: Precision = "float32", *, weights: Precision = "float32", simplified: bool = False
    ) -> EagerSession:
        """Open the same network, computed in another way, on the CPU, to compare an artifact with.

        ``float64`` is as good as exact, because its rounding is a billionth of float32's; inputs and outputs are
        float64.
        ``tf32`` computes as a GPU does in TF32: factors are rounded to 10 bits first, sums are float32. The weights are
        rounded to the dtype ``weights`` first; ``simplified`` is the network as exporters simplify it.

        Source: NVIDIA A100 Tensor Core GPU architecture, 2020, on TF32.
        """
        import torch

        from cnndeploy.simplification import copied, simplify

        assert self._module is not None  # noqa: S101 - asked of open sessions
        network = simplify(self._module)[0] if simplified else self._module
        network = copied(network).to(getattr(torch, weights)).float()
        session = EagerSession(self.artifact, self.run_as, self._torch_device, network)
        if precision == "float64":
            network.double()
            session.inputs = tuple(replace(spec, dtype="float64") for spec in session.inputs)
        elif precision == "tf32":
            for module in network.modules():
                if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                    module.weight.data = _to_tf32(module.weight.data)
                    module.register_forward_pre_hook(lambda _, inputs: (_to_tf32(inputs[0]),))
        return session


def _only_tensor(output: object) -> torch.Tensor | None:
    """Return what a module returned if it is one tensor, alone or beside None, as attention returns it."""
    import torch

    values = output if isinstance(output, tuple | list) else (output,)
    tensors = [value for value in values if value is not None]
    return tensors[0] if len(tensors) == 1 and isinstance(tensors[0], torch.Tensor) else None


def _to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Round float32 to the nearest number with 10 bits of mantissa, and ties to even."""
    import torch

    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def network_of(artifact: Artifact, device: torch.device) -> torch.nn.Module:
    """Return a checkpoint's network in eval mode, on ``device``."""
    import torch

    from cnndeploy.checkpoint import Checkpoint

    try:
        return Checkpoint.load(artifact).network().to(device)
    except torch.OutOfMemoryError as error:
        raise DeviceUnavailableError(f"{artifact.path} does not fit into the memory of {device}") from error


RUNTIME = TorchRuntime("eager", ("checkpoint",), network_of, EagerSession, graphs=True)
