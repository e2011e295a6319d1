"""Reading ONNX files where scripts written for earlier versions import it from."""

from cbam_deploy.graphs.onnx_file import read_model, read_provenance

__all__ = ["read_model", "read_provenance"]
