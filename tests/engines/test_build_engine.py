"""Engines really built by TensorRT-RTX, on a machine without a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import threading

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tensorrt_rtx as trt
from onnx import helper, numpy_helper
from rich.console import Console

from cbam_deploy.engines import build, monitor
from cbam_deploy.engines.backend import load_backend
from cbam_deploy.engines.build import build_engine
from cbam_deploy.engines.manifest import manifest_path, read_manifest
from cbam_deploy.engines.options import BuildOptions, check_precision
from cbam_deploy.engines.source import batch_profile, read_source
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.graphs.gate_bodies import gate_function
from cbam_deploy.machine import Gpu


@pytest.fixture
def output(tmp_path):
    """Where to build; the folder has nothing else in it."""
    folder = tmp_path / "built"
    folder.mkdir()
    return folder / "net.engine"


def test_engine_is_one_that_tensorrt_rtx_recognizes(gated_build):
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    plan = gated_build.path.read_bytes()
    assert not runtime.get_engine_validity(plan)[1] & malformed
    assert runtime.get_engine_validity(bytes(len(plan)))[1] & malformed


def test_result_and_manifest_tell_what_was_built(convolution, output):
    source = convolution()
    result = build_engine(source, output, min_batch=2, opt_batch=4, max_batch=16)
    manifest = read_manifest(output)
    assert result.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert result.sha256 == manifest.engine_sha256
    assert result.bytes == output.stat().st_size == manifest.engine_bytes
    assert manifest.onnx_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (manifest.runtime, manifest.runtime_version) == ("tensorrt-rtx", trt.__version__)
    assert manifest.profile["input"].min == (2, 3, 16, 16)
    assert manifest.profile["input"].opt == (4, 3, 16, 16)
    assert manifest.profile["input"].max == (16, 3, 16, 16)
    assert manifest.batch_range == (2, 16)
    assert manifest.precision == "fp32"
    assert manifest.inputs[0].shape == ("batch", 3, 16, 16)
    assert manifest.outputs[0].shape == ("batch", 8, 16, 16)
    assert "--max-batch 16" in manifest.command
    assert result.manifest_path == output.with_name("net.engine.json")
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "net.engine",
        "net.engine.json",
    ]


def test_builder_is_configured_as_asked(convolution, output, monkeypatch):
    seen = []
    polygraphy = load_backend("tensorrt-rtx").polygraphy
    genuine = polygraphy.engine_bytes_from_network

    def watched(network, config):
        targets = range(config.num_compute_capabilities)
        seen.append(
            {
                "TF32": config.get_flag(trt.BuilderFlag.TF32),
                "targets": [config.get_compute_capability(index).name for index in targets],
                "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
            }
        )
        return genuine(network, config=config)

    monkeypatch.setattr(polygraphy, "engine_bytes_from_network", watched)
    targets = ("sm_120", "sm_86", "sm_120")
    result = build_engine(convolution(), output, targets=targets, workspace_mib=64)
    assert seen == [
        {
            "TF32": False,
            "targets": ["SM120", "SM86"],
            "workspace": 64 << 20,
        }
    ]
    assert result.targets == read_manifest(output).targets == ("sm_120", "sm_86")


def test_result_is_printed_and_is_json(gated_build):
    terminal = io.StringIO()
    Console(width=200, file=terminal).print(gated_build)
    printed = terminal.getvalue()
    assert "odd[1].engine.json" in printed
    assert "1x3x16x16 / 8x3x16x16 / 64x3x16x16" in printed
    assert "2 native" in printed
    data = json.loads(json.dumps(gated_build.to_json()))
    assert (data["schema"], data["schema_version"]) == ("cbam_deploy.build", 1)
    assert data["profile"]["input"]["opt"] == [8, 3, 16, 16]
    assert data["path"] == str(gated_build.path)


def test_gates_are_built_from_their_function_bodies(gated_build):
    assert gated_build.gates == {"node_first": "native", "node_output": "native"}
    assert read_manifest(gated_build.path).gates == gated_build.gates


def test_gates_that_share_a_name_count_each(gated):
    model = onnx.load(gated)
    for node in model.graph.node:
        node.name = "gate"
    onnx.save(model, gated)
    assert read_source(gated).gates == {"gate": "SeGate", "gate.2": "SeGate"}


def test_gate_without_function_body_is_refused_by_name(gated, output):
    model = onnx.load(gated)
    del model.functions[:]
    onnx.save(model, gated)
    with pytest.raises(BadInput, match=r"gate node_first .SeGate. has no function body"):
        build_engine(gated, output)


@pytest.mark.parametrize("target", ["sm_90", "8.9", "ada"])
def test_target_that_the_builder_does_not_know_is_refused_by_name(convolution, output, target):
    with pytest.raises(BadInput, match=target) as refused:
        build_engine(convolution(), output, targets=("sm_89", target))
    assert "sm_75, sm_80, sm_86, sm_89, sm_120" in refused.value.hint


def test_fixed_batch_is_kept(convolution):
    shapes = batch_profile(read_source(convolution(batch=4)), BuildOptions())["input"]
    assert {shapes.min[0], shapes.opt[0], shapes.max[0]} == {4}


def test_another_batch_than_the_fixed_one_is_refused_by_option(convolution, output):
    with pytest.raises(BadInput, match="--max-batch 8"):
        build_engine(convolution(batch=4), output, min_batch=4, max_batch=8)


def test_second_dynamic_dimension_is_refused_by_name(convolution, output):
    with pytest.raises(BadInput, match="input is also dynamic in side, and nothing"):
        build_engine(convolution(size="side"), output)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), (1, 8, 64)),
        ((None, None, 4), (1, 4, 4)),
        ((32, None, None), (32, 32, 64)),
        ((None, 128, None), (1, 128, 128)),
    ],
)
def test_batches_left_out_follow_those_given(convolution, given, expected):
    names = ("min_batch", "opt_batch", "max_batch")
    options = BuildOptions(**dict(zip(names, given, strict=True)))
    shapes = batch_profile(read_source(convolution()), options)["input"]
    assert (shapes.min[0], shapes.opt[0], shapes.max[0]) == expected


@pytest.mark.parametrize("batches", [(0, 1, 1), (4, 2, 8), (1, 8, 4)])
def test_batches_out_of_order_are_refused(convolution, output, batches):
    names = ("min_batch", "opt_batch", "max_batch")
    with pytest.raises(BadInput, match="1 <= min <= opt <= max"):
        build_engine(convolution(), output, **dict(zip(names, batches, strict=True)))


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ({"timing_cache": "cache"}, "--timing-cache"),
        ({"optimization_level": 0}, "--optimization-level"),
        ({"version_compatible": True}, "--version-compatible"),
    ],
)
def test_option_that_tensorrt_rtx_lacks_is_refused_by_name(convolution, output, option, flag):
    with pytest.raises(BadInput, match=f"TensorRT-RTX has no option {flag}"):
        build_engine(convolution(), output, **option)


def test_option_that_tensorrt_lacks_is_refused_by_name(convolution, output):
    with pytest.raises(BadInput, match="TensorRT has no option --target"):
        build_engine(convolution(), output, runtime="tensorrt", targets=("sm_89",))


def test_plugin_is_refused_where_there_are_none(gated, output):
    with pytest.raises(BadInput, match="TensorRT-RTX has no plugins"):
        build_engine(gated, output, gate="plugin")


def test_what_needs_a_gpu_is_a_missing_capability(convolution, output, monkeypatch):
    monkeypatch.setattr("cbam_deploy.engines.options.gpus", lambda: ())
    for options in ({"strip_weights": True}, {"runtime": "tensorrt"}):
        with pytest.raises(MissingCapability, match="an NVIDIA GPU, and this one has none"):
            build_engine(convolution(), output, **options)


def test_one_process_drives_one_tensorrt():
    load_backend("tensorrt-rtx")
    with pytest.raises(BadInput, match="already drives TensorRT-RTX"):
        load_backend("tensorrt")


def test_operator_that_tensorrt_lacks_is_named_in_one_line(tmp_path, output):
    graph = helper.make_graph(
        [helper.make_node("Det", ["input"], ["output"], name="determinant")],
        "net",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 4, 4])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(BadInput, match=r"cannot parse it: .*determinant") as refused:
        build_engine(tmp_path / "net.onnx", output)
    assert "\n" not in refused.value.message


def test_matrix_product_in_fp32_on_turing_gets_a_hint(tmp_path, output):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "net",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.ones((8, 8), np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(BadInput, match=r"cannot build it: .*SM75") as refused:
        build_engine(tmp_path / "net.onnx", output, targets=("sm_75",))
    assert "sm_75" in refused.value.hint


def test_too_little_workspace_is_named_in_the_hint(convolution, output):
    with pytest.raises(BadInput, match="cannot build it") as refused:
        build_engine(convolution(), output, workspace_mib=1)
    assert "--workspace 1" in refused.value.hint


def test_weights_in_an_external_file_are_found_beside_the_model(convolution, output, monkeypatch):
    path = convolution()
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir("/")
    build_engine(path, output)
    moved = path.rename(path.parent.parent / "elsewhere.onnx")
    with pytest.raises(BadInput, match=r"weights.bin"):
        build_engine(moved, output)


@pytest.mark.parametrize("content", [b"", b"\x08" * 999, os.urandom(4096), b"not a model"])
def test_what_is_no_onnx_model_is_refused(tmp_path, output, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"broken.onnx: is no"):
        build_engine(path, output)
    assert list(output.parent.iterdir()) == []


@pytest.fixture
def parsed_alone(monkeypatch):
    """The builder stops at its first step, as if someone had pressed Ctrl-C."""
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(monitor, "interrupt_flag", lambda: contextlib.nullcontext(stop))


def test_damaged_models_never_crash_the_parser(gated, output, parsed_alone):
    """Each byte string differs from a sound model in one place; the parser is native code."""
    whole = gated.read_bytes()
    random = np.random.default_rng(0)
    refused = parsed = 0
    for position in random.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[position] = random.integers(0, 256)
        gated.write_bytes(damaged)
        with pytest.raises(BadInput) as stopped:
            build_engine(gated, output)
        if "cannot build it" in stopped.value.message:
            parsed += 1
        else:
            refused += 1
    assert refused > 0
    assert parsed > 0


def test_name_that_is_no_text_is_refused(convolution, output):
    path = convolution()
    path.write_bytes(path.read_bytes().replace(b"features", b"featur\xff\xff"))
    with pytest.raises(BadInput, match="not UTF-8"):
        build_engine(path, output)


def test_failure_leaves_the_earlier_engine_and_nothing_else(convolution, output):
    earlier = {output: b"an engine", manifest_path(output): b"its manifest"}
    for path, content in earlier.items():
        path.write_bytes(content)
    with pytest.raises(BadInput):
        build_engine(convolution(), output, workspace_mib=1)
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == earlier


def test_onnx_file_is_not_overwritten_by_its_engine(convolution):
    path = convolution()
    with pytest.raises(BadInput, match="is read as onnx_path"):
        build_engine(path, path)
    onnx.checker.check_model(path)


def test_ctrl_c_while_building_leaves_no_file(convolution, output, monkeypatch):
    genuine = monitor.progress_monitor

    def interrupting(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return genuine(*arguments)

    monkeypatch.setattr(monitor, "progress_monitor", interrupting)
    with pytest.raises(KeyboardInterrupt):
        build_engine(convolution(), output)
    assert list(output.parent.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_flag_of_ctrl_c_stops_the_builder_before_its_end(convolution, output, parsed_alone):
    with pytest.raises(BadInput, match="cannot build it"):
        build_engine(convolution(), output)


def test_success_prints_nothing_and_logs_nothing_above_debug(convolution, output, capfd, caplog):
    with caplog.at_level("DEBUG"):
        build_engine(convolution(), output)
    assert capfd.readouterr() == ("", "")
    assert {(record.name, record.levelname) for record in caplog.records} == {
        ("cbam_deploy.engines.backend", "DEBUG")
    }


def test_half_precision_weights_are_recorded(convolution):
    path = convolution()
    model = onnx.load(path)
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "weight"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, path)
    assert read_source(path).precision == "fp16"


class FakeTimings:
    """What a builder configuration gives for a timing cache."""

    def __init__(self, accepted: bool) -> None:
        self.accepted = accepted

    def create_timing_cache(self, data: bytes) -> bytes | None:
        return data if data.startswith(b"timings") else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        return self.accepted

    def get_timing_cache(self):
        return self

    def serialize(self):
        return contextlib.nullcontext(memoryview(b"timings of this build"))


def test_timing_cache_is_read_when_it_exists_and_written_after(tmp_path):
    from cbam_deploy.engines.backend import BuilderLog

    path = tmp_path / "cache"
    build.load_timing_cache(FakeTimings(accepted=True), path, BuilderLog())
    build.save_timing_cache(FakeTimings(accepted=True), path)
    assert path.read_bytes() == b"timings of this build"
    build.load_timing_cache(FakeTimings(accepted=True), path, BuilderLog())
    with pytest.raises(BadInput, match="another GPU or TensorRT version"):
        build.load_timing_cache(FakeTimings(accepted=False), path, BuilderLog())
    path.write_bytes(b"garbage")
    with pytest.raises(BadInput, match="not a timing cache"):
        build.load_timing_cache(FakeTimings(accepted=True), path, BuilderLog())


BF16_AND_FP8 = """
<ir_version: 10, opset_import: ["" : 22, "cbam_deploy" : 1]>
low (float[batch,32,8,8] input) => (float[batch,32,8,8] output)
{
  narrow = Cast <to = 16> (input)
  features = Conv <pads = [1, 1, 1, 1]> (narrow, weight)
  gated = cbam_deploy.SeGate (features, w0, b0, w1, b1)
  wide = Cast <to = 1> (gated)
  q = QuantizeLinear (wide, scale, zero)
  dq = DequantizeLinear (q, scale, zero)
  kernel = DequantizeLinear <axis = 0> (weight8, scales, zeros)
  output = Conv <pads = [1, 1, 1, 1]> (dq, kernel)
}
"""


def low_precision(path, *, fp8):
    """A BF16 convolution and gate, and behind them an FP8 convolution or none."""
    model = onnx.parser.parse_model(BF16_AND_FP8)
    random = np.random.default_rng(0)
    shapes = {"w0": (2, 32), "b0": (2,), "w1": (32, 2), "b1": (32,)}
    arrays = {
        name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    kernel = random.standard_normal((32, 32, 3, 3), dtype=np.float32)
    arrays["weight"] = kernel.astype(ml_dtypes.bfloat16)
    if fp8:
        arrays["weight8"] = kernel.astype(ml_dtypes.float8_e4m3fn)
        arrays |= {"scale": np.array(0.1, np.float32), "scales": np.full(32, 0.1, np.float32)}
        arrays |= {"zero": np.zeros((), ml_dtypes.float8_e4m3fn)}
        arrays |= {"zeros": np.zeros(32, ml_dtypes.float8_e4m3fn)}
    else:
        del model.graph.node[4:]
        model.graph.node[3].output[0] = "output"
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()
    )
    model.functions.append(ir.serde.serialize_function(gate_function("SeGate", 22)))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("precision", "target", "oldest"),
    [
        ("bf16", "sm_80", "8.0"),
        ("bf16", "sm_120", "8.0"),
        ("fp8", "sm_89", "8.9"),
        ("fp8", "sm_120", "8.9"),
    ],
)
def test_bf16_and_fp8_are_built_for_gpus_that_have_them(
    tmp_path, output, precision, target, oldest
):
    source = low_precision(tmp_path / "low.onnx", fp8=precision == "fp8")
    result = build_engine(source, output, targets=(target,))
    assert read_manifest(output).precision == result.precision == precision
    assert build.portable(precision).endswith(f"{oldest} and later")


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("bf16", "sm_75", "in BF16, which needs compute capability 8.0 or later: sm_75"),
        ("fp8", "sm_86", "in FP8, which needs compute capability 8.9 or later: sm_86"),
    ],
)
def test_bf16_and_fp8_are_refused_by_name_elsewhere(tmp_path, output, precision, target, message):
    source = low_precision(tmp_path / "low.onnx", fp8=precision == "fp8")
    with pytest.raises(BadInput, match=message) as refused:
        build_engine(source, output, targets=("sm_120", target))
    assert f"--target {target}" in refused.value.hint
    assert not list(output.parent.iterdir())


def test_a_gpu_without_fp8_is_what_the_machine_lacks(monkeypatch):
    monkeypatch.setattr("cbam_deploy.engines.options.gpus", lambda: (Gpu("A100", (8, 0), 1),))
    with pytest.raises(MissingCapability, match="this machine's GPU is sm_80"):
        check_precision("net.onnx", "fp8", (), "tensorrt")
    check_precision("net.onnx", "bf16", (), "tensorrt")
