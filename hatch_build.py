"""How hatchling names a wheel that carries the plugin library: for the systems that can load it.

A wheel made without the library is pure Python, for any system.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = Path("cbam_deploy/plugins/native/libcbam_deploy_plugin.so")
_MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine of the ELF header


class WheelTag(BuildHookInterface[Any]):
    """Gives the wheel its platform tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is made; an editable one runs where it lies."""
        library = Path(self.root, LIBRARY)
        if version != "editable" and library.is_file():
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag(library.read_bytes())}"


def platform_tag(library: bytes) -> str:
    """The tag of PEP 600 for a shared library: its processor, and the newest glibc it asks for.

    Source: https://peps.python.org/pep-0600/
    """
    (machine,) = struct.unpack_from("<H", library, 18)
    versions = re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)", library)
    major, minor = max((int(major), int(minor)) for major, minor in versions)
    return f"manylinux_{major}_{minor}_{_MACHINES[machine]}"
