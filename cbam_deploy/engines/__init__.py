"""TensorRT engines: building them, and the manifest beside each."""

from cbam_deploy.engines.build import BuildResult, build_engine

__all__ = ["BuildResult", "build_engine"]
