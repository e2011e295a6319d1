"""Run a model's `AttentionGate` by the fused operators; imported when ``fused=True`` is asked for.

The operators take float32 weights with the spatial gate's BatchNorm folded into its convolution.
With gradients these are made anew in every call, so that the parameters receive them. Without, they
are kept until a parameter or statistic of the module changes, and then refreshed in place: CUDA
graphs that captured their addresses see the new values after the next call outside a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cbam_deploy import models
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.plugins import torch_op


@dataclass(frozen=True)
class _Source:
    """One tensor that weights were made from, as it was then.

    `alias` shares its storage and so keeps the address from being used for anything else.
    """

    alias: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Source:
        return cls(tensor.detach(), tensor._version)

    def is_still(self, tensor: Tensor) -> bool:
        same = self.alias.data_ptr() == tensor.data_ptr() and self.alias.dtype == tensor.dtype
        return same and self.version == tensor._version and self.alias.device == tensor.device


def create_model(
    name: str,
    *,
    attention: str = "cbam",
    num_classes: int = 1000,
    stem: str | None = None,
    gate: GateSpec | None = None,
    seed: int | None = None,
    fused: bool = False,
) -> nn.Module:
    """Build a network of the zoo with initial weights, in training mode.

    Args:
        name: one of `models.list_models`.
        attention: ``cbam``, ``se`` or ``none``.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` or ``cifar``; None takes the network's own.
        gate: another variant of the gate than the one `attention` stands for.
        seed: makes the initial weights reproducible; None draws them from torch's generator.
        fused: run gates by ``torch.ops.cbam_deploy``, on GPUs one kernel per gate with the residual
            addition and ReLU that follow it. Parameters and results are the same, up to rounding.
            CBAM's gates are fused in evaluation only: in training their BatchNorm needs the batch.

    Returns:
        A module from pictures [N, 3, H, W] float32 to logits [N, num_classes].

    Raises:
        BadInput: a name or value outside these, or a combination that cannot work.
    """
    if fused and attention == "none":
        raise BadInput("attention none has no gates to fuse", "leave fused out")
    model = models.create_model(
        name, attention=attention, num_classes=num_classes, stem=stem, gate=gate, seed=seed
    )
    for module in model.modules() if fused else ():
        if isinstance(module, AttentionGate):
            module.operators = FusedGate(module.spec)
    return model


class FusedGate:
    """What one gate is computed by: its variant's operators, with its weights as they take them."""

    def __init__(self, spec: GateSpec) -> None:
        self._spatial = spec.has_spatial
        self._operator = operator_for(spec)
        self._operator_with_residual = operator_for(spec, residual=True, activation="relu")
        self._sources: tuple[_Source, ...] = ()
        self._weights: tuple[Tensor, ...] = ()

    def __call__(self, gate: AttentionGate, x: Tensor, residual: Tensor | None) -> Tensor:
        """The gate of `x`, or relu(gate(x) + residual)."""
        weights = self._weights_of(gate)
        if residual is None:
            return torch_op.function_of(self._operator)(x, *weights)
        return torch_op.function_of(self._operator_with_residual)(x, residual, *weights)

    def computes(self, gate: AttentionGate) -> bool:
        """Whether the operators compute `gate` as it is now.

        In training the spatial gate's BatchNorm needs the batch's statistics; and what is exported
        is to be made of standard operators.
        """
        if torch.compiler.is_exporting():
            return False
        return not (self._spatial and gate.spatial.bn.training)

    def _weights_of(self, gate: AttentionGate) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return folded(gate)
        sources = _tensors(gate)
        if any(tensor.is_inference() for tensor in sources):
            return folded(gate)  # their changes cannot be told
        if len(self._sources) == len(sources) and all(
            map(_Source.is_still, self._sources, sources)
        ):
            return self._weights
        if sources[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return folded(gate)  # known only when the graph is replayed
        with torch.inference_mode(False), torch.no_grad():
            self._keep(folded(gate))
        self._sources = tuple(map(_Source.of, sources))
        return self._weights

    def _keep(self, weights: tuple[Tensor, ...]) -> None:
        if self._weights and self._weights[0].device == weights[0].device:
            for kept, new in zip(self._weights, weights, strict=True):
                kept.copy_(new)
        else:
            self._weights = tuple(weight.clone() for weight in weights)


def folded(gate: AttentionGate) -> tuple[Tensor, ...]:
    """The weights of a gate in evaluation, float32, in the order of its operator's inputs."""
    weights: dict[str, Tensor] = {}
    if gate.spec.has_channel:
        channel = gate.channel
        if gate.spec.mixer == "mlp":
            weights |= {"W0": channel.reduce.weight, "B0": channel.reduce.bias}
            weights |= {"W1": channel.expand.weight, "B1": channel.expand.bias}
        elif gate.spec.mixer == "linear":
            assert channel.mix.bias is not None
            weights |= {"W1": channel.mix.weight, "B1": channel.mix.bias}
        else:
            kernel = channel.mix.weight
            weights |= {"WC": kernel, "BC": kernel.new_zeros(1)}
    if gate.spec.has_spatial:
        spatial, bn = gate.spatial, gate.spatial.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        if spatial.describe is not None:
            weights["WD"] = spatial.describe.weight
        scale = bn.weight.float() * (bn.running_var.float() + bn.eps).rsqrt()
        weights["WS"] = spatial.conv.weight.float() * scale
        weights["BS"] = bn.bias.float() - bn.running_mean.float() * scale
    return tuple(weights[name].float() for name in operator_for(gate.spec).weights)


def _tensors(gate: AttentionGate) -> list[Tensor]:
    """What a gate's weights are made from."""
    state = (*gate.parameters(), *gate.buffers())
    return [tensor for tensor in state if tensor.is_floating_point()]
