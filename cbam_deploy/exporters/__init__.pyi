from .gates.fusion import fuse as fuse
from .gates.inlining import inline as inline
from .lower import lower as lower
from .onnx_export import export_onnx as export_onnx
