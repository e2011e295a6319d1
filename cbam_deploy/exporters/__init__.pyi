from .gates.fusion import fuse as fuse
from .onnx_export import export_onnx as export_onnx
