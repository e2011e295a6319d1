"""The gates as TensorRT plugins, of the kind that Python registers and the engine then contains.

`register` declares the nodes of `plugin_nodes` that a network may need with the decorators of
``tensorrt.plugin`` (TensorRT 10.9 and later):

- ``register``: shapes and types of the outputs;
- ``autotune``: types and layouts of the maps, and for each the few launches worth timing;
- ``aot_impl``: for a type, layout and launch, the kernel as PTX, its grid as an expression of the
  batch, and its integers. TensorRT embeds these in the engine, which so needs neither Python nor
  this package.

TensorRT passes a kernel its inputs, then the integers, then the outputs, and so do `launches`.
Under TensorRT 11.1 and 11.2 an engine with embedded kernels is reported to lose GPU memory whenever
the shape of its input changes: https://github.com/NVIDIA/TensorRT/issues/4849.
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/tensorrt.plugin
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cbam_deploy.errors import BadInput, MissingCapability, in_one_line
from cbam_deploy.gates.operators import DOMAIN, GateOperator
from cbam_deploy.plugins.compile import compile_kernels
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import DeviceLimits
from cbam_deploy.plugins.layouts import Dtype
from cbam_deploy.plugins.plugin_nodes import (
    CAPABILITY,
    FORMATS,
    LINEAR,
    Format,
    PluginNode,
    embedding_limits,
    nodes_of,
)
from cbam_deploy.plugins.stages import workspace_shapes

_TYPES: dict[Dtype, tuple[str, str]] = {
    "float32": ("FLOAT", "FP32"),
    "float16": ("HALF", "FP16"),
    "bfloat16": ("BF16", "BF16"),
    "int8": ("INT8", "INT8"),
}
"""Name of `tensorrt.DataType`, and in a combination of types."""

_NAMES = {names[0]: dtype for dtype, names in _TYPES.items()}


def register(limits: DeviceLimits, operators: Iterable[GateOperator]) -> None:
    """Make TensorRT's ONNX parser find the gates' plugins; their nodes name the GPU themselves.

    Args:
        limits: of a GPU that engines are built for, see `plugin_nodes.embedding_limits`; that its
            kernels can be compiled is tried.
        operators: that the network contains.

    Raises:
        MissingCapability: TensorRT is not installed, or too old, or NVRTC is not installed.
    """
    trt, plugin = _modules()
    compile_kernels((), _architecture(limits))
    known = getattr(plugin.op, DOMAIN, None)
    nodes = {node.name: node for operator in operators for node in nodes_of(operator)}
    for name, node in nodes.items():
        if not hasattr(known, name):
            _Plugin(node, trt, plugin).register()


class _Plugin:
    """The three functions behind one operator; TensorRT keeps them while the process lives."""

    def __init__(self, node: PluginNode, trt: Any, plugin: Any) -> None:
        self._node, self._trt, self._plugin = node, trt, plugin

    def register(self) -> None:
        """Hand them to TensorRT."""
        plugin, name = self._plugin, f"{DOMAIN}::{self._node.name}"
        desc = plugin.TensorDesc
        several = len(self._node.outputs) > 1
        described = tuple[(desc,) * len(self._node.outputs)] if several else desc  # type: ignore[misc]
        text = str | bytes
        embedded = tuple[text, text, plugin.KernelLaunchParams, plugin.SymIntExprs]  # type: ignore[name-defined]
        combinations = list[plugin.AutoTuneCombination]  # type: ignore[name-defined]
        plugin.register(name)(self._function(self._describe, (), described))
        plugin.autotune(name)(self._function(self._combine, ("outputs",), combinations))
        plugin.aot_impl(name)(self._function(self._embed, ("outputs", "tactic"), embedded))

    def _describe(self, *tensors: Any, **attributes: Any) -> Any:
        """Types and shapes of the outputs, where the batch is an expression."""
        batch = tensors[0].shape_expr[0]
        names = self._node.outputs
        made = tuple(self._output(name, tensors[0], batch, attributes) for name in names)
        return made if len(made) > 1 else made[0]

    def _output(self, name: str, first: Any, batch: Any, attributes: dict[str, Any]) -> Any:
        if name == "y":
            return first.like()
        gate = self._node.gate({}, attributes, self._node.dtypes[0], LINEAR)
        shape = workspace_shapes(gate, int(attributes["splits"]))[name]
        return self._plugin.from_shape_expr((batch, *shape), dtype=self._trt.float32)

    def _combine(self, *arguments: Any) -> list[Any]:
        """Every combination of type and layout that there are kernels for, with its tactics."""
        node, combinations = self._node, []
        tensors, attributes, _ = self._split(arguments)
        limits = _limits(attributes)
        for dtype in node.dtypes if node.maps else node.dtypes[:1]:
            for format_ in FORMATS[dtype] if node.maps else (LINEAR,):
                try:
                    gate = self._gate(tensors, attributes, dtype, format_)
                    batches, splits = _batches(tensors[0].shape), attributes.get("splits")
                    tactics = node.tactics(gate, limits, batches, splits)
                except BadInput:
                    continue
                if tactics:
                    combinations.append(self._combination(dtype, format_, list(tactics)))
        if not combinations:
            raise BadInput(f"{node.name}: there is no kernel for it", "use --gate native")
        return combinations

    def _combination(self, dtype: Dtype, format_: Format, tactics: list[int]) -> Any:
        node = self._node
        of_map = [name in node.maps for name in (*node.inputs, *node.outputs)]
        types = ", ".join(_TYPES[dtype if is_map else "float32"][1] for is_map in of_map)
        layouts = ", ".join(format_.name if is_map else LINEAR.name for is_map in of_map)
        return self._plugin.AutoTuneCombination(types, layouts, tactics)

    def _embed(self, *arguments: Any) -> tuple[bytes, bytes, Any, Any]:
        """Name and PTX of the kernel, its launch parameters and its integers."""
        node, plugin = self._node, self._plugin
        tensors, attributes, (_, tactic) = self._split(arguments)
        limits = _limits(attributes)
        dtype, format_ = self._type_and_format(tensors)
        gate = self._gate(tensors, attributes, dtype, format_)
        launch = node.launch(gate, limits, tactic, attributes.get("splits"))
        compiled = compile_kernels([launch.kernel], _architecture(limits))
        parameters = plugin.KernelLaunchParams()
        parameters.grid_x = tensors[0].shape_expr[0] * launch.blocks_per_image
        parameters.block_x = launch.threads
        parameters.shared_mem = launch.shared_bytes
        integers = plugin.SymIntExprs(len(launch.integers))
        for index, (_, value) in enumerate(launch.integers):
            integers[index] = plugin.SymInt32(value)
        ptx = compiled.image.rstrip(b"\0")
        return launch.kernel.name.encode(), ptx, parameters, integers

    def _type_and_format(self, tensors: Sequence[Any]) -> tuple[Dtype, Format]:
        """Of the maps, as TensorRT has chosen them."""
        if not self._node.maps:
            return "float32", LINEAR
        dtype, name = _NAMES[tensors[0].dtype.name], tensors[0].format.name
        return dtype, next(format_ for format_ in FORMATS[dtype] if format_.name == name)

    def _gate(
        self, tensors: Sequence[Any], attributes: dict[str, Any], dtype: Dtype, format_: Format
    ) -> Gate:
        named = zip(self._node.inputs, tensors, strict=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in named}
        return self._node.gate(shapes, attributes, dtype, format_)

    def _split(self, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Any], tuple[Any, ...]]:
        """Tensors, attributes by name, and what else TensorRT passes."""
        count, names = len(self._node.inputs), (*self._node.sizes, *self._node.scales, CAPABILITY)
        end = count + len(names)
        attributes = dict(zip(names, arguments[count:end], strict=True))
        return arguments[:count], attributes, arguments[end:]

    def _function(self, method: Callable[..., Any], more: tuple[str, ...], returned: Any) -> Any:
        """`method` with the signature that TensorRT reads: a parameter per tensor and attribute."""
        node = self._node
        types: dict[str, Any] = dict.fromkeys(node.inputs, self._plugin.TensorDesc)
        types |= dict.fromkeys(node.sizes, int) | dict.fromkeys(node.scales, float)
        types[CAPABILITY] = int
        types |= dict.fromkeys(more, inspect.Parameter.empty)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, annotation=types[name]) for name in types]

        def function(*arguments: Any, **attributes: Any) -> Any:
            return method(*arguments, **attributes)

        signature = inspect.Signature(parameters, return_annotation=returned)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function


def _batches(shape: Any) -> tuple[int, ...]:
    """The batches to be fast for, the most frequent first."""
    if not shape.is_dynamic:
        return (shape[0],)
    return tuple(dict.fromkeys(int(ends[0]) for ends in (shape.opt, shape.max, shape.min)))


def _limits(attributes: dict[str, Any]) -> DeviceLimits:
    return embedding_limits(divmod(int(attributes[CAPABILITY]), 10))


def _architecture(limits: DeviceLimits) -> str:
    return f"compute_{limits.capability}"


def _modules() -> tuple[Any, Any]:
    hint = "install TensorRT 10.9 or later from NVIDIA's package index, or use --gate native"
    try:
        trt = importlib.import_module("tensorrt")
        plugin = importlib.import_module("tensorrt.plugin")
    except Exception as error:  # a stub package without native libraries may raise anything
        reason = in_one_line(error)
        raise MissingCapability(f"tensorrt.plugin cannot be loaded ({reason})", hint) from error
    if not hasattr(plugin, "aot_impl"):
        raise MissingCapability(f"TensorRT {trt.__version__} cannot embed plugins", hint)
    return trt, plugin
