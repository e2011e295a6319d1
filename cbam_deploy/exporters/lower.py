"""Write the ONNX file that other people's TensorRT builds from: its gates are nodes of our plugin.

`build-engine` does the same for TensorRT on this machine. The file is for `trtexec` on a Jetson,
for DeepStream and whatever else hands an ONNX file to TensorRT's parser; docs/tensorrt.md says how.
Each node carries kernels for the GPUs that were named, so where the file goes no CUDA compiler is
needed, and nothing of this package but the plugin library.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cbam_deploy.command_files import check_apart
from cbam_deploy.engines.options import check_precision
from cbam_deploy.engines.source import DEFAULT_MAX_BATCH, DEFAULT_OPT_BATCH, OnnxSource, read_source
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.gate_functions import gate_counts
from cbam_deploy.graphs.onnx_file import set_provenance, write_model
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.outputs import check_place
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, DeviceLimits
from cbam_deploy.plugins.images import TENSORRT
from cbam_deploy.plugins.lowering import NATIVE, Lowered, lower_gates
from cbam_deploy.plugins.native_library import LIBRARY
from cbam_deploy.provenance import Lowering, Provenance, file_sha256, package_versions
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration, size


@dataclass(frozen=True)
class GateLowering:
    """One gate of the file.

    Attributes:
        node: name of its node.
        operator: what it computes.
        way: ``plugin``, or ``native``.
        formats: of its maps, as far as there are kernels: type and TensorRT's layout.
        tactics: that TensorRT may choose from, for all formats and targets.
        images: kernel images that it uses.
        carried_bytes: size of those that its node carries for itself and later gates.
        reason: why it stays native.
    """

    node: str
    operator: str
    way: str
    formats: tuple[str, ...]
    tactics: int
    images: int
    carried_bytes: int
    reason: str

    @classmethod
    def of(cls, node: str, lowered: Lowered) -> GateLowering:
        """What became of the gate of a node."""
        program = lowered.program
        targets = program.targets if program else ()
        offered = (f"{form.dtype} {form.layout}" for one in targets for form in one.formats)
        return cls(
            node=node,
            operator=lowered.operator,
            way=lowered.way,
            formats=tuple(dict.fromkeys(offered)),
            tactics=program.tactic_count if program else 0,
            images=len(program.images) if program else 0,
            carried_bytes=lowered.carried_bytes,
            reason=lowered.reason,
        )


@dataclass(frozen=True)
class LowerResult(Result):
    """A lowered file.

    Attributes:
        path: the file.
        bytes: its size.
        sha256: its hash.
        source_bytes: size of the file it was made from.
        targets: compute capabilities that it has kernels for, such as ``sm_87``.
        tensorrt: version of TensorRT that it is for.
        gates: in the order of the graph.
        image_bytes: size of all kernel images.
        shared_bytes: what they would take more if every gate had its own.
        trtexec: words of the command that builds an engine of it.
        seconds: duration.
    """

    title: ClassVar[str] = "ONNX file for TensorRT"
    schema: ClassVar[str] = "cbam_deploy.lowering"

    path: Path
    bytes: int
    sha256: str
    source_bytes: int
    targets: tuple[str, ...]
    tensorrt: str
    gates: tuple[GateLowering, ...]
    image_bytes: int
    shared_bytes: int
    trtexec: tuple[str, ...]
    seconds: float

    def sections(self) -> tuple[Section, ...]:
        """The file, its gates, and how an engine is built of it."""
        lowered = [gate for gate in self.gates if gate.way != NATIVE]
        native = tuple((gate.node, gate.reason) for gate in self.gates if gate.way == NATIVE)
        facts = (
            ("file", f"{self.path} ({size(self.bytes)})"),
            ("sha256", self.sha256),
            ("targets", ", ".join(self.targets)),
            ("TensorRT", f"{self.tensorrt} and later"),
            ("gates", f"{len(lowered)} of {len(self.gates)} lowered to the plugin"),
            (
                "kernels",
                f"{size(self.image_bytes)}, with {size(self.shared_bytes)} saved by sharing",
            ),
            ("added", size(self.bytes - self.source_bytes)),
            ("took", duration(self.seconds)),
        )
        gates = Table(
            ("gate", "operator", "formats", "tactics", "kernels", "carries"),
            tuple(
                (
                    *(gate.node, gate.operator, ", ".join(gate.formats)),
                    *(str(gate.tactics), str(gate.images), size(gate.carried_bytes)),
                )
                for gate in lowered
            ),
            text_columns=3,
            spare=("operator", "formats"),
        )
        left = Table(("stays native", "because"), native, text_columns=2)
        *words, last = (shlex.quote(word) for word in self.trtexec)
        lines = (f"{words[0]} \\", *(f"  {word} \\" for word in words[1:]), f"  {last}")
        command = Table(
            ("",),
            tuple((line,) for line in lines),
            caption=f"To build an engine of it, beside {LIBRARY}:",
        )
        tables = (Table.facts(facts), gates, *((left,) if native else ()), command)
        return (Section(self.title, tables=tables),)


@said_of_the_file
def lower(
    source: str | Path,
    output: str | Path,
    *,
    targets: Sequence[str],
    tensorrt: str = TENSORRT,
    batch_size: int = DEFAULT_OPT_BATCH,
) -> LowerResult:
    """Lower the gates of an ONNX file to TensorRT's plugin; write the result to `output`.

    Args:
        source: a file with fused gates, in the precision that the engine is to have.
        output: file to write.
        targets: compute capabilities of the GPUs that engines are for, such as ``sm_87``.
        tensorrt: version of TensorRT that builds, ``10.3`` or later by default.
        batch_size: that the kernels are to be fast for.

    Raises:
        BadInput: `source` cannot be read, has no fused gates or none that there are kernels for, a
            target or version is unknown, or `output` cannot be written.
        MissingCapability: NVRTC or the CUDA headers are not installed.
    """
    begin = time.perf_counter()
    source, output = Path(source), Path(output)
    check_place(output, artefact=True)
    check_apart(output, source=source)
    devices = tuple(map(_device, dict.fromkeys(targets)))
    if not devices:
        raise BadInput("no GPU is named", "give --target, such as sm_87 for Jetson Orin")
    opened = read_source(source)
    if not opened.gates:
        raise BadInput(
            f"{source}: has no fused gates to lower",
            f"fuse them first: cbam-deploy fuse {source} -o FUSED.onnx",
        )
    check_precision(str(source), opened.precision, targets)
    model = opened.model.clone()
    lowered = lower_gates(model, devices, tensorrt=tensorrt, batch=batch_size)
    if all(one.program is None for one in lowered.values()):
        name, first = next(iter(lowered.items()))
        raise BadInput(
            f"{source}: none of its gates can be lowered: {name}: {first.reason}",
            "use the file as it is: TensorRT builds these gates from their function bodies",
        )
    names = tuple(f"sm_{device.capability}" for device in devices)
    history = opened.provenance or Provenance(gates=gate_counts(opened.model))
    record = Lowering(source.name, file_sha256(source), names, tensorrt)
    versions = history.versions | package_versions("cbam-deploy", "nvidia-cuda-nvrtc")
    set_provenance(model, replace(history, lowered=record, versions=versions))
    write_model(model, output)
    used = [image for one in lowered.values() if one.program for image in one.program.images]
    carried = sum(one.carried_bytes for one in lowered.values())
    return LowerResult(
        path=output,
        bytes=output.stat().st_size,
        sha256=file_sha256(output),
        source_bytes=source.stat().st_size,
        targets=names,
        tensorrt=tensorrt,
        gates=tuple(GateLowering.of(name, one) for name, one in lowered.items()),
        image_bytes=carried,
        shared_bytes=sum(image.bytes for image in used) - carried,
        trtexec=_trtexec(opened, output, batch_size),
        seconds=time.perf_counter() - begin,
    )


def _device(target: str) -> DeviceLimits:
    """The device of a target such as ``sm_87``."""
    known = {f"sm_{capability}": limits for capability, limits in KNOWN_DEVICES.items()}
    if target not in known:
        raise BadInput(
            f"--target {target}: there are no kernels for it", f"choose from {', '.join(known)}"
        )
    return known[target]


def _trtexec(source: OnnxSource, output: Path, batch: int) -> tuple[str, ...]:
    """The words of the command; free axes but the batch are left to the person, by their names."""
    library = f"./{LIBRARY}"
    words = [
        "trtexec",
        f"--onnx={output}",
        f"--saveEngine={output.with_suffix('.engine')}",
        "--stronglyTyped",
        f"--dynamicPlugins={library}",
        f"--setPluginsToSerialize={library}",
    ]
    if any(isinstance(size, str) for spec in source.inputs for size in spec.shape):
        batches = {"min": 1, "opt": batch, "max": max(DEFAULT_MAX_BATCH, batch)}
        for end, images in batches.items():
            shapes = (
                f"{spec.name}:" + "x".join(map(str, _with_batch(spec.shape, images)))
                for spec in source.inputs
            )
            words.append(f"--{end}Shapes={','.join(shapes)}")
    return tuple(words)


def _with_batch(shape: Sequence[int | str], batch: int) -> tuple[int | str, ...]:
    first, *rest = shape
    return (batch if isinstance(first, str) else first, *rest)
