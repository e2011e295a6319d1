"""What an artefact is: its history, inputs and gates, and whether its hashes still hold.

Two kinds of mismatch are told apart. An engine whose bytes or manifest were altered is bad input,
here as for every command: nothing that stands in it can be trusted. An ONNX file that no longer
fits what is recorded of it (an engine's source that has changed since, gates that were lost) is a
check that does not hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cbam_deploy.artefacts import Engine, OnnxFile, artefact_kind, open_engine, open_onnx
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import DOMAIN, is_lowered, operator_named
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import Provenance, file_sha256
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import duration, size

_NAMED = 6  # Float maps that the table has room for; JSON has all.

if TYPE_CHECKING:
    import onnx_ir as ir

    from cbam_deploy.engines.manifest import Manifest
    from cbam_deploy.plugins.launch_program import LaunchProgram


@dataclass(frozen=True)
class GateFacts:
    """One attention gate.

    Attributes:
        node: name of the node.
        op: such as ``CbamGateAddRelu``; empty where only the lowering is known.
        channels: C, like the next two None where the file does not say.
        reduction: r.
        kernel_size: k of the spatial convolution; None also for a gate without one.
        lowering: what runs in its place: its ``function`` body in an ONNX file (``none`` without
            one, ``other function`` for a body that is not this version's), ``native`` layers or the
            ``plugin`` in an engine; the ``plugin`` in a lowered file.
    """

    node: str
    op: str
    channels: int | None
    reduction: int | None
    kernel_size: int | None
    lowering: str


@dataclass(frozen=True)
class ProgramFacts:
    """The launch program of a gate that was lowered to the plugin.

    Attributes:
        node: name of the node.
        target: compute capability that it plans for, such as ``sm_87``.
        formats: type and TensorRT's layout of the maps, the preferred one first.
        tactics: that TensorRT may choose from, for all formats.
        image_bytes: size of the kernel images for all targets.
    """

    node: str
    target: str
    formats: tuple[str, ...]
    tactics: int
    image_bytes: int


@dataclass(frozen=True)
class Check:
    """One comparison of what is with what is recorded."""

    subject: str
    passed: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Inspection(Result):
    """What was found out without running anything.

    Attributes:
        artefact: path as given.
        file_bytes: size of the file.
        sha256: hash of the file.
        precision: one of `provenance.PRECISIONS`.
        inputs: of the network.
        outputs: of the network.
        gates: in the order of the graph.
        provenance: None for a file of another program.
        opsets: version by domain; empty for an engine.
        operators: number of nodes by operator; empty for an engine.
        manifest: of an engine.
        programs: of gates lowered to the plugin, one for each target.
        float_feature_maps: feature maps of a quantized network that travel through memory as float
            (`exporters.int8.feature_maps`); None for other networks, lowered ones and engines.
        checks: what was compared.
    """

    title: ClassVar[str] = "Inspection"
    schema: ClassVar[str] = "cbam_deploy.inspection"

    artefact: str
    file_bytes: int
    sha256: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gates: tuple[GateFacts, ...]
    provenance: Provenance | None
    opsets: dict[str, int] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    manifest: Manifest | None = None
    programs: tuple[ProgramFacts, ...] = ()
    float_feature_maps: tuple[str, ...] | None = None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is as recorded."""
        return all(check.passed for check in self.checks)

    def failure(self) -> tuple[str, str]:
        """What to tell a person when a check did not hold: a message and a hint."""
        first = next(check for check in self.checks if not check.passed)
        return f"{self.artefact}: {first.subject} {first.message}", "make the artefact again"

    def sections(self) -> tuple[Section, ...]:
        """What it is, its gates, and what was compared."""
        gates = Table(
            columns=("gate", "operator", "lowering", "C", "r", "k"),
            rows=tuple(
                (
                    *(gate.node, gate.op, gate.lowering),
                    *(
                        "" if number is None else str(number)
                        for number in (gate.channels, gate.reduction, gate.kernel_size)
                    ),
                )
                for gate in self.gates
            ),
            text_columns=3,
        )
        programs = Table(
            columns=("lowered gate", "formats", "for", "tactics", "kernels"),
            rows=tuple(
                (
                    *(one.node, ", ".join(one.formats), one.target),
                    *(str(one.tactics), size(one.image_bytes)),
                )
                for one in self.programs
            ),
            text_columns=3,
        )
        checks = Table(
            columns=("", ""),
            rows=tuple(
                ("ok" if check.passed else "FAILED", f"{check.subject} {check.message}")
                for check in self.checks
            ),
            text_columns=2,
            emphasized=tuple(i for i, check in enumerate(self.checks) if not check.passed),
        )
        facts = Table.facts(self._facts())
        tables = tuple(table for table in (facts, gates, programs, checks) if table.rows)
        return (Section(self.title, passed=self.passed if self.checks else None, tables=tables),)

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "file", f"{self.artefact} ({size(self.file_bytes)})"
        yield "sha256", self.sha256
        if self.provenance is None:
            yield "provenance", "none: the file was not made by cbam-deploy"
            yield "preprocessing", "not recorded"
        else:
            yield from self.provenance.facts()
        yield "precision", self.precision
        yield "inputs", "; ".join(map(_signature, self.inputs))
        yield "outputs", "; ".join(map(_signature, self.outputs))
        if self.operators:
            yield "opsets", ", ".join(f"{domain} {v}" for domain, v in self.opsets.items())
            counts = ", ".join(f"{count} {op}" for op, count in self.operators.items())
            yield "nodes", f"{sum(self.operators.values())}: {counts}"
        if self.float_feature_maps is not None:
            count, names = len(self.float_feature_maps), ", ".join(self.float_feature_maps[:_NAMED])
            more = f" and {count - _NAMED} more" if count > _NAMED else ""
            yield "float maps", f"{count} {names}{more}"
        if self.manifest is not None:
            yield from _engine_facts(self.manifest)
        if not self.gates:
            yield "gates", "none fused"


@said_of_the_file
def inspect(artefact: str | Path) -> Inspection:
    """Read what an ``.onnx`` or ``.engine`` file says of itself, and check its hashes.

    Raises:
        BadInput: the file is missing, malformed, altered, or of another kind.
    """
    path = Path(artefact)
    if artefact_kind(path) == "onnx":
        return _inspect_onnx(open_onnx(path, to_run=False, lowered=True))
    return _inspect_engine(open_engine(path))


def _inspect_onnx(artefact: OnnxFile) -> Inspection:
    from cbam_deploy.exporters.int8.feature_maps import float_feature_maps
    from cbam_deploy.graphs.signature import graph_precision
    from cbam_deploy.graphs.weights import weight_faults
    from cbam_deploy.plugins.lowering import programs

    path, model, provenance = artefact.path, artefact.model, artefact.provenance
    precision = graph_precision(model)
    try:
        lowered = programs(model)
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from error
    gates = _graph_gates(model, lowered)
    counted = Counter(_operator(node) for node in model.graph)
    return Inspection(
        artefact=str(path),
        file_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        precision=precision,
        inputs=artefact.inputs,
        outputs=artefact.outputs,
        gates=gates,
        provenance=provenance,
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        operators=dict(counted.most_common()),
        programs=tuple(facts for name in lowered for facts in _program_facts(name, lowered[name])),
        float_feature_maps=(
            float_feature_maps(model) if precision in ("int8", "fp8") and not lowered else None
        ),
        checks=(
            *(() if provenance is None else _recorded_checks(provenance, gates, precision)),
            *(
                Check(f"weight {name}", False, f"is broken: {text}")
                for name, text in weight_faults(model).items()
            ),
        ),
    )


def _inspect_engine(artefact: Engine) -> Inspection:
    path, manifest = artefact.path, artefact.manifest
    intact = Check("engine and manifest", True, "are as they were built")
    source = path.with_name(manifest.onnx)
    checks, shapes = [intact], {}
    if source.is_file():
        same = file_sha256(source) == manifest.onnx_sha256
        message = "is what the engine was built from" if same else "has changed since the build"
        checks.append(Check(f"source {source.name}", same, message))
        shapes = {gate.node: gate for gate in _source_gates(source)} if same else {}
    unknown = GateFacts("", "", None, None, None, "")
    return Inspection(
        artefact=str(path),
        file_bytes=manifest.engine_bytes,
        sha256=manifest.engine_sha256,
        precision=artefact.precision,
        inputs=artefact.inputs,
        outputs=artefact.outputs,
        gates=tuple(
            replace(shapes.get(node, unknown), node=node, lowering=lowering)
            for node, lowering in manifest.gates.items()
        ),
        provenance=artefact.provenance,
        manifest=manifest,
        checks=tuple(checks),
    )


def _source_gates(path: Path) -> tuple[GateFacts, ...]:
    from cbam_deploy.graphs.onnx_file import read_model

    return _graph_gates(read_model(path), {})


def _program_facts(node: str, program: LaunchProgram) -> Iterator[ProgramFacts]:
    for target in program.targets:
        yield ProgramFacts(
            node=node,
            target=f"sm_{target.capability}",
            formats=tuple(f"{form.dtype} {form.layout}" for form in target.formats),
            tactics=sum(len(form.tactics) for form in target.formats),
            image_bytes=sum(image.bytes for image in program.images),
        )


def _graph_gates(model: ir.Model, lowered: dict[str, LaunchProgram]) -> tuple[GateFacts, ...]:
    """The gates of a graph; `lowered` are the programs of those that became plugin nodes."""
    from cbam_deploy.graphs.gate_functions import foreign_operators

    foreign = foreign_operators(model)
    bodies = {
        key: "other function" if key[1] in foreign else "function"
        for key in model.functions
        if key[0] == DOMAIN
    }
    return tuple(
        _lowered_gate(node, lowered[_name(node)])
        if is_lowered(node)
        else _gate(node, node.op_type, bodies.get(node.op_identifier(), "none"))
        for node in model.graph
        if node.domain == DOMAIN or is_lowered(node)
    )


def _lowered_gate(node: ir.Node, program: LaunchProgram) -> GateFacts:
    return replace(_gate(node, program.operator, "plugin"), channels=program.sizes[0])


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _gate(node: ir.Node, op: str, lowering: str) -> GateFacts:
    """Sizes follow from the shapes of W0 [C/r, C] and of WS [1, d, k, k]."""
    from cbam_deploy.graphs.gate_functions import channels_of

    operator = operator_named(op)
    inputs = operator.by_name(node.inputs) if operator else {}
    down, spatial = _shape(inputs.get("W0")), _shape(inputs.get("WS"))
    return GateFacts(
        node=_name(node),
        op=op,
        channels=channels_of(node),
        reduction=down[1] // down[0] if down else None,
        kernel_size=spatial[-1] if spatial else None,
        lowering=lowering,
    )


def _shape(value: ir.Value | None) -> list[int] | None:
    """Shape of a value, where all of it is known."""
    if value is None or value.shape is None:
        return None
    sizes = [size for size in value.shape if isinstance(size, int)]
    return sizes if len(sizes) == len(value.shape) and all(sizes) else None


def _recorded_checks(
    provenance: Provenance, gates: tuple[GateFacts, ...], precision: str
) -> tuple[Check, ...]:
    counted = Counter(gate.op for gate in gates)
    same = dict(counted) == provenance.gates
    recorded = ", ".join(f"{n} {op}" for op, n in provenance.gates.items()) or "none"
    message = "are as recorded" if same else f"are not as recorded ({recorded})"
    as_recorded = precision == provenance.precision
    return (
        Check("gates", same, message),
        Check(
            "precision",
            as_recorded,
            "is as recorded"
            if as_recorded
            else f"{precision} is recorded as {provenance.precision}",
        ),
    )


def _operator(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _signature(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _engine_facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "runtime", f"{manifest.runtime} {manifest.runtime_version}"
    yield "targets", ", ".join(manifest.targets) or "as the runtime chooses"
    for name, shapes in manifest.profile.items():
        ends = " ".join(f"{end} {list(getattr(shapes, end))}" for end in ("min", "opt", "max"))
        yield "profile", f"{name} {ends}"
    if manifest.plugin is not None:
        held = "in the engine" if manifest.plugin.embedded else "to be loaded beside the engine"
        yield "plugin", f"{held}, sha256 {manifest.plugin.sha256}"
    yield "built from", f"{manifest.onnx}, sha256 {manifest.onnx_sha256}"
    yield "built in", f"{duration(manifest.build_seconds)} by: {manifest.command}"
