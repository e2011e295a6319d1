"""What `build-engine` must know about an ONNX file before TensorRT sees it.

TensorRT's parser crashes on some malformed graphs (a function that calls itself, for one), so every
graph passes the ONNX checker first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cbam_deploy.engines.manifest import ShapeRange
from cbam_deploy.engines.options import BuildOptions
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.numerics.sizes import free_axes, parse_sizes
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import Provenance

if TYPE_CHECKING:
    import onnx_ir as ir

DEFAULT_OPT_BATCH = 8
DEFAULT_MAX_BATCH = 64


@dataclass(frozen=True)
class OnnxSource:
    """One ONNX file, as far as building an engine depends on it.

    Attributes:
        path: the file.
        inputs: specs of the network inputs.
        outputs: specs of the network outputs.
        gates: fused gate nodes by name, with their operator.
        precision: what the graph computes in, whatever is recorded.
        provenance: its history, where it has one.
        external: whether weights lie in other files beside it.
        model: the graph; change a clone.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gates: dict[str, str]
    precision: str
    provenance: Provenance | None
    external: bool
    model: ir.Model = field(repr=False)


def read_source(path: str | Path) -> OnnxSource:
    """Check an ONNX file and summarize it.

    Raises:
        BadInput: it cannot be read, is no valid ONNX model, has a gate without function body, or
            weights that are no numbers.
    """
    from cbam_deploy.graphs.names import name_apart
    from cbam_deploy.graphs.onnx_file import has_data_beside, read_model, read_provenance
    from cbam_deploy.graphs.signature import graph_precision, specs_of
    from cbam_deploy.graphs.weights import check_weights

    path = Path(path)
    model = read_model(path)
    check_weights(model, path)
    gates = [node for node in model.graph if node.domain == DOMAIN]
    name_apart(gates)
    for node in gates:
        if node.op_identifier() not in model.functions:
            raise BadInput(
                f"{path}: gate {node.name} ({node.op_type}) has no function body to build from",
                "export or fuse the model again with cbam-deploy",
            )
    return OnnxSource(
        path=path,
        inputs=specs_of(model.graph.inputs),
        outputs=specs_of(model.graph.outputs),
        gates={node.name or "": node.op_type for node in gates},
        precision=graph_precision(model),
        provenance=read_provenance(model),
        external=has_data_beside(model),
        model=model,
    )


def batch_profile(source: OnnxSource, options: BuildOptions) -> dict[str, ShapeRange]:
    """The shapes an engine of `source` shall accept, by input name.

    Batches left None are 1, 8 and 64, moved as far as the given ones force them. Where the file
    fixes its batch, the engine has that batch.

    Raises:
        BadInput: not 1 <= min <= opt <= max, the file fixes another batch, or `sizes` is malformed,
            leaves a free axis out or names one that the file has not.
    """
    ranges = parse_sizes(options.sizes, free_axes(source.inputs), str(source.path))
    batches = _ordered(options.min_batch, options.opt_batch, options.max_batch)
    _check_fixed(source, options)
    return {
        spec.name: ShapeRange(
            *(
                _shape(source, spec, batch, {name: ends[end] for name, ends in ranges.items()})
                for end, batch in enumerate(batches)
            )
        )
        for spec in source.inputs
    }


def _ordered(
    min_batch: int | None, opt_batch: int | None, max_batch: int | None
) -> tuple[int, int, int]:
    low = 1 if min_batch is None else min_batch
    high = max(DEFAULT_MAX_BATCH, low, opt_batch or 0) if max_batch is None else max_batch
    middle = sorted((low, DEFAULT_OPT_BATCH, high))[1] if opt_batch is None else opt_batch
    if not 1 <= low <= middle <= high:
        raise BadInput(
            f"batches must be 1 <= min <= opt <= max, not min {low}, opt {middle}, max {high}",
            "change --min-batch, --opt-batch or --max-batch",
        )
    return low, middle, high


def _check_fixed(source: OnnxSource, options: BuildOptions) -> None:
    """Refuse batches that a file without a dynamic batch cannot have."""
    if any(isinstance(size, str) for spec in source.inputs for size in spec.shape[:1]):
        return
    for spec in source.inputs:
        for end in ("min", "opt", "max"):
            batch = getattr(options, f"{end}_batch")
            if batch is not None and spec.shape[:1] != (batch,):
                raise BadInput(
                    f"{source.path}: input {spec.name} has the fixed shape {list(spec.shape)}; "
                    f"--{end}-batch {batch} cannot be met",
                    "leave the batch options out, or export with a dynamic batch",
                )


def _shape(
    source: OnnxSource, spec: TensorSpec, batch: int, sizes: Mapping[str, int]
) -> tuple[int, ...]:
    """The shape of one input at `batch` and `sizes`."""
    missing = dict.fromkeys(
        size for size in spec.shape[1:] if isinstance(size, str) and size not in sizes
    )
    if missing:
        raise BadInput(
            f"{source.path}: input {spec.name} is also dynamic in {', '.join(missing)}, and nothing"
            " says in which range",
            f"give --size {next(iter(missing))}=MIN,OPT,MAX for each, or export with fixed sizes",
        )
    rest = (sizes[size] if isinstance(size, str) else size for size in spec.shape[1:])
    first = (batch if isinstance(size, str) else size for size in spec.shape[:1])
    return (*first, *rest)
