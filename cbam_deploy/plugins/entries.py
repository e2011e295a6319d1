"""The kernels' C++ types and entry points, written from what a launch is made of.

The kernels are templates of device functions (``kernels/``). A launch names one with its arguments;
the ``__global__`` function around it, whose parameters are the launch's, is written here, so that
another kind of gate needs none by hand. Compiler, driver, TensorRT and the tests on the host all
take the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cbam_deploy.gates.operators import GateOperator
from cbam_deploy.plugins.gate import ELEMENTS, Gate

_MAPS = {"x", "r", "y"}
_WORKSPACE = {"partials", "channel_gates", "pooled"}


@dataclass(frozen=True)
class Kernel:
    """One entry point.

    Attributes:
        name: in source and image; ends in a hash of what sets it apart.
        text: its definition.
    """

    name: str
    text: str

    @property
    def programmatic(self) -> Kernel:
        """The same for launches that may start before what they read is there.

        It does not compile for GPUs on which it would not wait for that, so that no image of it
        can be taken for one that waits.
        """
        kind, _, digest = self.name.rpartition("_")
        name = f"{kind}_programmatic_{digest}"
        text = self.text.replace(f" {self.name}(", f" {name}(")
        return Kernel(name, f"static_assert(cbam::kOverlaps);\n{text}")


def entry_point(
    kind: str,
    function: str,
    element: str,
    *,
    cluster: int,
    threads: int,
    resident: int,
    inputs: Iterable[str],
    integers: Iterable[str],
    outputs: Iterable[str],
) -> Kernel:
    """The ``__global__`` function that calls `function` of ``kernels/`` with its parameters.

    Their order is TensorRT's: inputs, 32-bit integers, outputs.

    Args:
        kind: how its name starts.
        function: C++ expression of the device function.
        element: C++ type of the maps.
        cluster: blocks of a cluster.
        threads: of a block.
        resident: blocks that a multiprocessor is to have registers for.
        inputs: names of the pointers it reads, fields of ``Arguments``.
        integers: names of the integers.
        outputs: names of the pointers it writes.
    """

    def pointer(name: str, constant: str) -> str:
        if name in _WORKSPACE:
            return f"float* {name}"
        return f"{constant}{element if name in _MAPS else 'float'}* {name}"

    parameters = [pointer(name, "const ") for name in inputs]
    parameters += [f"int {name}" for name in integers]
    parameters += [pointer(name, "") for name in outputs]
    names = [parameter.rpartition(" ")[2] for parameter in parameters]
    attributes = f"CBAM_CLUSTER({cluster}) " if cluster > 1 else ""
    attributes += f"__launch_bounds__({threads}, {resident})"
    body = [f"  cbam::Arguments<{element}> arguments;"]
    body += [f"  arguments.{name} = {name};" for name in names]
    body += [f"  {function}(arguments);"]
    definition = "\n".join([f"({', '.join(parameters)}) {{", *body, "}"])
    digest = hashlib.sha256(f"{attributes}{definition}".encode()).hexdigest()[:16]
    name = f"{kind}_{digest}"
    return Kernel(name, f'extern "C" __global__ void {attributes} {name}{definition}\n')


def before_the_last(operator: GateOperator) -> GateOperator:
    """What launches before the last one have to know of `operator`.

    The same whatever follows the gate, but for activations through which y's scale does not pass:
    the stored gates then hold no part of it (``Gate::last_is_homogeneous``).
    """
    passes = operator.activation in ("none", "relu", "leaky_relu")
    return GateOperator(operator.gate, activation="none" if passes else operator.activation)


def gate_type(operator: GateOperator, kernel_size: int, channel_kernel_size: int) -> str:
    """The type ``cbam::Gate`` of ``kernels/language.cuh`` that computes `operator`."""
    spec = operator.gate
    choices = {
        "Order": spec.arrangement,
        "Pool": spec.channel_pool,
        "Mixer": spec.mixer,
        "Function": spec.activation,
        "Join": spec.join,
    }
    arguments = [_constant(name, value) for name, value in choices.items()]
    arguments += [_constant("Function", spec.channel_gate), str(channel_kernel_size)]
    arguments += [_constant("Descriptor", spec.spatial), _constant("Function", spec.spatial_gate)]
    arguments += [str(kernel_size), boolean(operator.residual)]
    arguments.append(_constant("Function", operator.activation))
    return f"cbam::Gate<{', '.join(arguments)}>"


def element_type(gate: Gate) -> str:
    """C++ type of one element of the maps."""
    return ELEMENTS[gate.dtype][0]


def boolean(value: bool) -> str:
    """In C++."""
    return "true" if value else "false"


def _constant(enumeration: str, value: str) -> str:
    return f"cbam::{enumeration}::{value.replace('-', '_').replace('+', '_')}"
