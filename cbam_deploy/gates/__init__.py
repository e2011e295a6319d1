"""The attention gate as data: its description, the names and inputs of its operators, its formula.

To add a kind of gate:

- `description.GateSpec`, where no variant of it says what the new gate is made of;
- `operators.KINDS`, one line with its name, and its weights where they are others;
- its body of standard operators, one entry of `graphs.gate_bodies`;
- a reader, for files whose gates are standard operators: `exporters.gates`;
- its equations in float64: `reference`;
- a kernel: its code in ``plugins/kernels``, what it is launched with in `plugins.launches`,
  `plugins.gate.KERNEL_OPERATORS`, and `plugins.torch_formula` for CPUs and gradients. A kind
  without a kernel runs by its body everywhere.

Fusion, FP16, INT8, lowering, plugin nodes, PyTorch's operators, inspection and costs follow from
`operators`.
"""
