"""The attention gate as data: its description, the names and inputs of its operators, its formula.

A gate made of parts that there are needs nothing more. To add a part, such as an activation:

- `description.GateSpec`: its choice; `operators`: its word, and its weights where it has some;
- `reference`: its equation and error in float64; `models.gate`: its equation in PyTorch;
- `graphs.gate_bodies`: its standard operators;
- `exporters.gates`: a reader, for files whose gates are standard operators;
- its choice in ``plugins/kernels/language.cuh``, which `plugins.entries.gate_type` names; what is
  launched where it needs other launches (`plugins.stages.stages`); and `plugins.torch_formula`
  where that has no line for it yet.

Fusion, FP16, INT8, lowering, plugin nodes, PyTorch's operators, inspection and costs follow from
`operators`.
"""
