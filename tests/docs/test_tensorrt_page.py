"""The page on TensorRT: its commands work as they stand, and make the files that it names."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from cbam_deploy.exporters.lower import lower
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.plugins import images, native_library
from cbam_deploy.plugins.compile import CompiledKernels
from cbam_deploy.plugins.geometry import KNOWN_DEVICES

PAGE = Path(__file__).parents[2].joinpath("docs", "tensorrt.md").read_text(encoding="utf-8")
BLOCKS = dict(enumerate(re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)))

NETWORK = """
<ir_version: 10, opset_import: ["" : 18, "cbam_deploy" : 1]>
net (float[batch,3,224,224] input) => (float[batch,8,224,224] output)
{
  features = Conv <pads = [1, 1, 1, 1]> (input, weight)
  output = cbam_deploy.SeGate (features, w0, b0, w1, b1)
}
"""
SHAPES = {"weight": (8, 3, 3, 3), "w0": (2, 8), "b0": (2,), "w1": (8, 2), "b1": (8,)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a `net.onnx`, where compilers have little to do."""
    model = parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model.functions.append(ir.serde.serialize_function(gate_function("SeGate", 18)))
    onnx.save(model, tmp_path / "net.onnx")

    def compile_kernels(kernels, architecture):
        (kernel,) = kernels
        return CompiledKernels(architecture, b"code", (kernel.name,), "", b".version 9.0\n\0")

    monkeypatch.setattr(images, "compile_kernels", compile_kernels)
    native = tmp_path / "native"
    native.mkdir()
    (native / native_library.SOURCE).write_text("int small() { return 0; }\n")
    monkeypatch.setattr(native_library, "NATIVE", native)
    monkeypatch.setattr(native_library, "FLAGS", ("-shared", "-fPIC"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(page: str) -> list[list[str]]:
    """The lines of shell blocks, as words."""
    lines = (
        line
        for language, block in BLOCKS.values()
        if language == "sh"
        for line in block.replace("\\\n", " ").splitlines()
    )
    return [shlex.split(line) for line in lines if line.startswith(page)]


def test_our_commands_make_the_files_that_the_page_names(folder, cli):
    ours = commands("cbam-deploy")
    assert [words[1] for words in ours] == ["lower", "build-plugin"]
    for words in ours:
        ended = cli(*words[1:])
        assert ended.code == 0, ended.err
    made = {path.name for path in folder.iterdir() if path.is_file()}
    assert made == {"net.onnx", "net-trt.onnx", "libcbam_deploy_plugin.so"}
    named = set(re.findall(r"\b[\w-]+\.(?:onnx|so)\b", PAGE))
    assert named == made


def test_the_trtexec_line_is_the_one_that_is_printed(folder):
    result = lower("net.onnx", "net-trt.onnx", targets=["sm_87"])
    assert commands("trtexec") == [list(result.trtexec)]


def test_targets_of_the_page_are_known_and_the_default_version_is_the_real_one():
    targets = set(re.findall(r"sm_(\d+)", PAGE))
    assert {"87", "110"} <= targets
    assert targets <= {str(capability) for capability in KNOWN_DEVICES}
    assert f"`--tensorrt {images.TENSORRT}`,\nthe default" in PAGE
    for version in re.findall(r"--tensorrt ([\d.]+)", PAGE):
        images.ptx_version(version)


def test_python_on_the_page_is_python():
    (code,) = (block for language, block in BLOCKS.values() if language == "python")
    ast.parse(code)
