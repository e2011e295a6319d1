"""`GateSpec` where scripts written for earlier versions import it from."""

from cbam_deploy.gates.description import CBAM, SE, GateSpec, parse_gate

__all__ = ["CBAM", "SE", "GateSpec", "parse_gate"]
