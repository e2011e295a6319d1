"""Compute a gate of CUDA tensors with the fused kernels, on PyTorch's current stream.

Outputs and workspace come from PyTorch's allocator, so that a CUDA graph that captures the launches
owns their memory. Whether one fused or several staged kernels run is for `geometry` to say.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cbam_deploy.gates.operators import GateOperator
from cbam_deploy.plugins.cuda_launch import LoadedPlan, device_limits, load_first
from cbam_deploy.plugins.gate import Gate, weight_sizes
from cbam_deploy.plugins.geometry import ranked_plans
from cbam_deploy.plugins.layouts import Dtype, LayoutName
from cbam_deploy.plugins.torch_inputs import GateInputs, dense

_DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_LAYOUTS: dict[torch.memory_format, LayoutName] = {
    torch.contiguous_format: "nchw",
    torch.channels_last: "nhwc",
}


def run(operator: GateOperator, inputs: GateInputs) -> Tensor:
    """`operator` of checked inputs on one CUDA device.

    Raises:
        BadInput: there is no kernel for such a map, or the batch is too large for the device.
        MissingCapability: NVRTC or cuda-bindings is missing.
    """
    x = dense(inputs.x)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    memory = next(one for one in _LAYOUTS if x.is_contiguous(memory_format=one))
    tensors = {"y": y}
    for name, tensor in inputs._replace(x=x)._asdict().items():
        if tensor is not None:
            format_ = memory if name in ("x", "r") else torch.contiguous_format
            tensors[name] = tensor.contiguous(memory_format=format_)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    gate = _gate(
        operator,
        *x.shape[1:],
        *weight_sizes(shapes).values(),
        dtype=_DTYPES[x.dtype],
        layout=_LAYOUTS[memory],
        alignment=alignment(*(tensors[name] for name in ("x", "r", "y") if name in tensors)),
    )
    launch(planned(gate, x.shape[0], x.device.index), tensors, x.shape[0], x.device)
    return y


@functools.lru_cache(maxsize=1024)
def planned(gate: Gate, batch: int, device: int) -> LoadedPlan:
    """`gate` on a GPU, in the geometry for the next power of two of `batch`."""
    rounded = 1 << (batch - 1).bit_length()
    return load_first(ranked_plans(gate, device_limits(device), batch=rounded), device)


def launch(
    loaded: LoadedPlan, tensors: dict[str, Tensor], batch: int, device: torch.device
) -> None:
    """Enqueue a plan on the current stream; `tensors` are its buffers but for the workspace."""
    with torch.cuda.device(device):
        # Freed on return, for use by what this stream runs afterwards.
        workspace = {
            name: torch.empty(size * batch, dtype=torch.float32, device=device)
            for name, size in loaded.plan.workspace
        }
        buffers = {name: tensor.data_ptr() for name, tensor in (tensors | workspace).items()}
        loaded.launch(buffers, batch, torch.cuda.current_stream(device).cuda_stream)


def alignment(*tensors: Tensor) -> int:
    """Bytes, at most 16, that the addresses of all `tensors` are multiples of."""
    bits = 16
    for tensor in tensors:
        bits |= tensor.data_ptr()
    return bits & -bits


_gate = functools.lru_cache(maxsize=1024)(Gate)
