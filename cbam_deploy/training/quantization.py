"""Quantization-aware training: a network that rounds as its INT8 file will, ready to be trained.

The ONNX file decides: the network is traced, its gates fused, and INT8 placed and calibrated as
`convert` does it. `quantized_graph` rounds at the same tensors in PyTorch, and both must agree
before training begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cbam_deploy.data.open_source import open_source
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import BadInput
from cbam_deploy.exporters.convert import CALIBRATION_IMAGES
from cbam_deploy.exporters.gates.fusion import fuse_model
from cbam_deploy.exporters.int8.calibration import (
    Calibration,
    Method,
    calibrate,
    calibration_batches,
    calibration_inputs,
)
from cbam_deploy.exporters.int8.placement import QuantizedNode, calibrated_tensors, quantized_nodes
from cbam_deploy.exporters.int8.quantization import (
    activation_scales,
    insert,
    prepare,
    trained_ranges,
)
from cbam_deploy.graphs.session import open_session
from cbam_deploy.models import resolve_preprocessing
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import ModelIdentity, Provenance
from cbam_deploy.tracing.network_inputs import pictures
from cbam_deploy.tracing.torch_graph import EXAMPLE_BATCH, export_program
from cbam_deploy.training.fake_quantization import ActivationQuantizer
from cbam_deploy.training.quantized_graph import QuantizedGraph

# Both compute the same but for float rounding, which moves single values to the next level.
_SMALLEST_COSINE = 0.999


@dataclass(frozen=True)
class Quantization:
    """What training with fake quantization begins with.

    Attributes:
        calibration: SOURCE of typical pictures; None for the training pictures.
        method: how ranges are found.
        images: how many pictures to calibrate on.
    """

    calibration: str | None = None
    method: Method = "percentile"
    images: int = CALIBRATION_IMAGES

    def __str__(self) -> str:
        """As runs are compared by."""
        pictures = self.calibration or "the training pictures"
        return f"{self.method} over {self.images} of {pictures}"

    def source(self, train_set: ImageSource) -> ImageSource:
        """The pictures to calibrate on; raises `BadInput` where there are none."""
        if self.calibration is None:
            return train_set
        found = open_source(self.calibration, train_set.preprocessing, split="train")
        if found.ready:
            raise BadInput(
                f"{self.calibration}: training takes pictures", "give a folder of pictures"
            )
        return found


def check_quantization(
    quantize: bool, weights: str | None, amp: str, calibration: str | None
) -> None:
    """Refuse what does not go with fake quantization, before the work begins; raises `BadInput`."""
    if not quantize:
        if calibration is not None:
            raise BadInput("--calibration is for --quantize", "add --quantize, or leave it out")
        return
    if weights is None:
        raise BadInput(
            "--quantize fine-tunes a trained network",
            "give its checkpoint with --weights; train it without --quantize first",
        )
    if amp != "none":
        raise BadInput(
            f"--quantize computes in FP32, as what INT8 files leave does, not in {amp}",
            "leave --amp out",
        )


class QuantizedNetwork(nn.Module):
    """A network whose forward pass rounds where its INT8 file does.

    Attributes:
        original: the network, whose parameters are trained; its BatchNorms are folded.
        facts: how the scales were found at first, as `Provenance.calibration` has it.
    """

    def __init__(
        self,
        original: nn.Module,
        graph: nn.Module,
        quantizers: Mapping[str, ActivationQuantizer],
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.original = original
        self.graph = graph
        self._quantizers = tuple(quantizers.items())
        self.facts = dict(facts)
        used = {id(parameter) for parameter in graph.parameters()}
        for parameter in original.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in used)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of pictures [N, 3, S, S]."""
        logits: Tensor = self.graph(x)
        return logits

    def scales(self) -> dict[str, float]:
        """Those of activations, by tensor of the ONNX file; borrowed ones are left out."""
        return {name: quantizer.value for name, quantizer in self.quantizers()}

    def load_scales(self, scales: Mapping[str, float]) -> None:
        """Take over what `scales` gave."""
        with torch.no_grad():
            for name, quantizer in self.quantizers():
                quantizer.scale.fill_(scales[name])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer: scales do not decay."""
        scales = [quantizer.scale for _, quantizer in self.quantizers()]
        weights = [p for p in self.original.parameters() if p.requires_grad]
        return [{"params": weights}, {"params": scales, "weight_decay": 0.0}]

    def quantizers(self) -> tuple[tuple[str, ActivationQuantizer], ...]:
        """Those of activations, by tensor of the ONNX file, in its order."""
        return self._quantizers


def quantized_network(
    network: nn.Module,
    identity: ModelIdentity,
    quantization: Quantization,
    train_set: ImageSource,
    seed: int,
    recorded: Provenance | None = None,
) -> QuantizedNetwork:
    """`network` with fake quantization, its BatchNorms folded.

    Args:
        network: on the CPU, in evaluation mode; it is changed.
        identity: which it is.
        quantization: how to calibrate.
        train_set: pictures to calibrate on, where `quantization` names no others.
        seed: of the choice of those.
        recorded: of the checkpoint; scales that were trained with it are taken as they are, unless
            `quantization` names pictures.

    Raises:
        BadInput: torch cannot export the network, INT8 does not concern it, its values cannot be
            found in the ONNX graph, or both compute something else.
    """
    source = quantization.source(train_set)
    traced = _Traced.of(network, identity, source.preprocessing)
    if recorded is not None and recorded.trained_scales and quantization.calibration is None:
        calibration = trained_ranges(traced.model, recorded.trained_scales)
        facts = recorded.calibration
    else:
        calibration = traced.calibrated(quantization, source, seed)
        facts = {
            "source": source.name,
            "images": calibration.images,
            "seed": seed,
            "method": calibration.method,
            "preprocessing": source.prepared_by,
        }
    found = traced.quantized(network, calibration, facts)
    _check_agreement(found, insert(traced.model, calibration)[0], source, identity.name)
    return found


def trained_network(
    network: nn.Module, identity: ModelIdentity, recorded: Provenance
) -> QuantizedNetwork:
    """`network` with the fake quantization that it was trained with.

    Args:
        network: on the CPU, in evaluation mode, with the weights of the checkpoint; it is changed.
        identity: which it is.
        recorded: of the checkpoint.

    Raises:
        BadInput: the scales are of another network.
    """
    traced = _Traced.of(network, identity, resolve_preprocessing(identity, recorded))
    ranges = trained_ranges(traced.model, recorded.trained_scales)
    return traced.quantized(network, ranges, recorded.calibration)


@dataclass(frozen=True)
class _Traced:
    """A network as a program of torch and as the ONNX graph of it, and what INT8 concerns there."""

    program: ExportedProgram
    model: ir.Model
    chosen: tuple[QuantizedNode, ...]

    @classmethod
    def of(
        cls, network: nn.Module, identity: ModelIdentity, preprocessing: Preprocessing
    ) -> _Traced:
        """Trace it as `export` does."""
        taken = pictures(preprocessing.shape)
        example = torch.zeros(EXAMPLE_BATCH, *preprocessing.shape)
        output = None if identity.num_classes is None else "logits"
        traced = export_program(network, [example], output, identity.name, taken.specs)
        assert traced.exported_program is not None
        fuse_model(traced.model)
        model = prepare(traced.model)
        return cls(traced.exported_program, model, quantized_nodes(model))

    def calibrated(self, quantization: Quantization, source: ImageSource, seed: int) -> Calibration:
        """Ranges of what INT8 concerns, as `convert` finds them."""
        inputs = calibration_inputs(self.model)
        return calibrate(
            self.model,
            calibrated_tensors(self.chosen),
            calibration_batches(source, inputs, images=quantization.images, seed=seed),
            method=quantization.method,
            images=min(quantization.images, len(source)),
        )

    def quantized(
        self, network: nn.Module, calibration: Calibration, facts: Mapping[str, Any]
    ) -> QuantizedNetwork:
        """The same with fake quantization, of the scales that follow from `calibration`."""
        scales = activation_scales(calibration, self.chosen)
        graph = QuantizedGraph(self.program, network)
        inputs = [value.name or "" for value in self.model.graph.inputs]
        quantizers = graph.quantize(self.chosen, scales, inputs)
        return QuantizedNetwork(network, graph.module(), quantizers, facts).eval()


@torch.no_grad()
def _check_agreement(
    network: QuantizedNetwork, model: ir.Model, source: ImageSource, name: str
) -> None:
    """Raise `BadInput` where the network in PyTorch is not the ONNX graph `model`."""
    images = next(source.batches(EXAMPLE_BATCH, limit=EXAMPLE_BATCH)).images
    session = open_session(ir.to_proto(model).SerializeToString(), name, as_written=True)
    expected = session.run(None, {session.get_inputs()[0].name: images})[0]
    error = tensor_error("logits", expected, network(torch.from_numpy(images)).numpy())
    if not error.cosine >= _SMALLEST_COSINE:
        raise BadInput(
            f"{name}: with fake quantization it computes something else in PyTorch than the INT8"
            f" file (a cosine of {error.cosine:.4f})",
            "train without --quantize, and convert to INT8 by calibration",
        )
