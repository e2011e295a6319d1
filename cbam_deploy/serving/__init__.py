"""Artefacts packaged for servers: Triton's model repository, DeepStream's nvinfer, and a check."""

from cbam_deploy.serving.packaging import package
from cbam_deploy.serving.server_check import check_server

__all__ = ["check_server", "package"]
