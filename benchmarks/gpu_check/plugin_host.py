"""What the program ``tensorrt_host``, which plays TensorRT's part, is told of a lowered gate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.plugins.launch_program import LaunchProgram, text
from cbam_deploy.plugins.native_library import NATIVE

SOURCES = Path(__file__).with_name("tensorrt_host")
SOURCE = SOURCES / "main.cpp"
COMPILE = ("-std=c++17", "-pthread", f"-I{NATIVE}")
"""Options for a C++ compiler; TensorRT's own headers go with -DCBAM_DEPLOY_NVIDIA_HEADERS."""

CHAR, INT8 = 6, 3  # TensorRT's PluginFieldType


@dataclass(frozen=True)
class Node:
    """What a lowered node carries: a launch program, and the images beside it."""

    program: LaunchProgram
    images: bytes

    def field_lines(self, folder: Path) -> list[str]:
        """Commands that hand the node's fields to the host; `folder` takes what they name."""
        lines = ["fields"]
        fields = (("program", CHAR, text(self.program).encode()), ("images", INT8, self.images))
        for name, kind, data in fields:
            file = folder / hashlib.sha256(data).hexdigest()[:16]
            file.write_bytes(data)
            lines.append(f"field {name} {kind} {len(data)} {file} 0 {len(data)}")
        return lines

    def input_lines(
        self, folder: Path, count: int, inputs: Mapping[str, NDArray[np.generic]]
    ) -> list[str]:
        """Commands that hand over `count` images: maps as they are stored, and weights, by name."""
        lines = ["inputs", f"images {count}"]
        for name in self.program.inputs:
            is_map, file = name in self.program.maps, folder / f"input.{name}"
            inputs[name].tofile(file)
            sizes = self.program.sizes if is_map else inputs[name].shape
            lines.append(" ".join(map(str, ("map" if is_map else "weight", name, file, *sizes))))
        return lines
