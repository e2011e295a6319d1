"""The gates' plugins meet TensorRT 11.4's own Python interface.

What is genuine: the bindings of TensorRT 11.4 with ``tensorrt.plugin``, whose decorators check our
functions and whose classes stand between them and the builder; NVRTC, which compiles the kernels.
What is not: TensorRT's libraries, for which small stand-ins are loaded, in a process of their own.

So this proves that plugins register, what they offer the builder, and what they hand it: kernel,
PTX, launch parameters, integers. It proves nothing about the builder, the ONNX parser, the engine
or the kernel's run inside it: no engine with these plugins is built or executed here. What the
kernels compute is proven on the host (`test_kernels_on_host`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.plugins import tensorrt_plugin
from cbam_deploy.plugins.plugin_nodes import LINEAR, NODES, embedding_limits, nodes_of
from cbam_deploy.plugins.stages import workspace_shapes

HERE = Path(__file__).parent
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
PROFILE = [1, 8, 64]  # batches
BATCHES = (1, 5, 64)  # as tensorrt_contract.py evaluates them
SCALES = {"x_scale": 0.0234375, "r_scale": 0.03125, "y_scale": 0.015625}


def fused(name, dtype, channels, size, *, batch=-1, tactics=1):
    node = NODES[name]
    return {
        "operator": name,
        "dtype": dtype,
        "capability": [9, 0],
        "inputs": [shapes(node, channels, size, batch)[one] for one in node.inputs],
        "attributes": {name: SCALES[name] for name in node.scales},
        "profile": PROFILE,
        "tactics": tactics,
    }


def staged(name, dtype, channels, size, *, splits=4, tactics=1):
    node = NODES[name]
    found = shapes(node, channels, size, -1)
    gate = node.gate({}, sizes(node, channels, size) | SCALES, node.dtypes[0], LINEAR)
    between = workspace_shapes(gate, splits)
    found |= {buffer: [-1, *shape] for buffer, shape in between.items()}
    return {
        **fused(node.operator.name, dtype, channels, size, tactics=tactics),
        "operator": name,
        "capability": [8, 0],
        "inputs": [found[one] for one in node.inputs],
        "attributes": sizes(node, channels, size) | {"splits": splits} | SCALES,
    }


def sizes(node, channels, size):
    weights = node.operator.weights
    return {
        "channels": channels,
        "height": size,
        "width": size,
        "hidden": max(1, channels // 16) if "W0" in weights else 0,
        "kernel_size": 7 if "WS" in weights else 0,
        "channel_kernel_size": 3 if "WC" in weights else 0,
    }


def shapes(node, channels, size, batch):
    """Of the maps and the weights, by name."""
    of = sizes(node, channels, size)
    weights = node.operator.weight_shapes(
        channels, of["hidden"], of["kernel_size"], of["channel_kernel_size"]
    )
    maps = {name: [batch, channels, size, size] for name in ("x", "r")}
    return maps | {name.lower(): list(shape) for name, shape in weights.items()}


CASES = {
    "fused half": fused("CbamGate", "HALF", 256, 14, tactics=2),
    "fused bf16, fixed batch": fused("CbamGateAddRelu", "BF16", 64, 8, batch=4),
    "fused float": fused("SeGate", "FLOAT", 64, 8),
    "fused half, channels padded": fused("SeGateAddRelu", "HALF", 20, 9),
    "fused int8": fused("QLinearCbamGate", "INT8", 256, 14),
    "fused int8, channels padded": fused("QLinearCbamGateAddRelu", "INT8", 48, 10),
    "fused int8, channel gate": fused("QLinearSeGate", "INT8", 64, 8),
    "fused int8, channel gate, residual": fused("QLinearSeGateAddRelu", "INT8", 64, 8),
    "fused half, one layer": fused("CbamGateMeanLinear", "HALF", 64, 20),
    "fused int8, along the channels": fused("QLinearEcaGate", "INT8", 64, 8),
    "fused half, sum": fused("ScseGate", "HALF", 64, 8),
    "statistics": staged("CbamGateChannelStatistics", "HALF", 256, 56, tactics=2),
    "statistics, channels not a multiple of 8": staged("CbamGateChannelStatistics", "HALF", 20, 56),
    "statistics, mean alone": staged("SeGateChannelStatistics", "INT8", 64, 56),
    "spatial statistics": staged("CbamGateSpatialStatistics", "BF16", 64, 56),
    "spatial statistics, one layer": staged("CbamGateMeanLinearSpatialStatistics", "HALF", 64, 56),
    "excitation": staged("SeGateChannelExcitation", "FLOAT", 64, 56),
    "apply": staged("CbamGateApply", "INT8", 48, 56),
    "apply, residual": staged("CbamGateAddReluApply", "HALF", 64, 56),
    "apply, channel gate": staged("SeGateApply", "FLOAT", 64, 56),
    "apply, channel gate, residual": staged("SeGateAddReluApply", "INT8", 64, 56),
    "apply, sum": staged("ScseGateApply", "FLOAT", 64, 56),
}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """A folder with stand-ins for TensorRT's libraries."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    for package in ("tensorrt_bindings", "tensorrt_rtx_libs"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, of the extras dev and rtx")
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    assert found is not None
    registry = Path(*found.submodule_search_locations or ()) / "libtensorrt_rtx.so.1"
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in LIBRARIES:
        output = folder / f"lib{name}.so.11"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{output.name}", "-o", str(output)]
        define = f'-DREGISTRY_LIBRARY="{registry}"'
        source = HERE / "stand_ins" / f"{name}.c"
        subprocess.run([compiler, *options, define, str(source), "-ldl"], check=True)
    return folder


@pytest.fixture(scope="session")
def answers(libraries, pytestconfig):
    """What the plugins answered, by case; and what was registered."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "XDG_CACHE_HOME": str(pytestconfig.cache.mkdir("kernels")),
    }
    process = subprocess.run(
        [sys.executable, str(HERE / "tensorrt_contract.py")],
        input=json.dumps(list(CASES.values())),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answered = json.loads(process.stdout.splitlines()[-1])
    return {**answered, "answers": dict(zip(CASES, answered["answers"], strict=True))}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def launches(answers, case):
    found = answers["answers"][case]["launches"]
    assert found
    return found


def test_a_plugin_is_registered_once_however_often_that_is_asked(answers):
    assert answers["version"].startswith("11.4.")
    operators = {NODES[case["operator"]].operator for case in CASES.values()}
    nodes = {node.name for operator in operators for node in nodes_of(operator)}
    assert sorted(answers["registered"]) == sorted(nodes), "those that were asked for, once"


def test_outputs_have_the_types_and_shapes_of_the_network(answers, case):
    given, answer = CASES[case], answers["answers"][case]
    node = NODES[given["operator"]]
    inputs = dict(zip(node.inputs, given["inputs"], strict=True))
    of, pools = given["attributes"], 2 if node.operator.gate.channel_pool == "avg+max" else 1
    for name, dtype, at_batches in zip(
        node.outputs, answer["types"], answer["shapes"], strict=True
    ):
        assert dtype == (given["dtype"] if name == "y" else "FLOAT")
        for batch, shape in zip(BATCHES, at_batches, strict=True):
            expected = {
                "y": lambda: inputs["x"],
                "partials": lambda: [-1, of["splits"], of["channels"], pools],
                "channel_gates": lambda: [-1, of["channels"]],
                "pooled": lambda: [-1, of["height"], of["width"], 2],
            }[name]()
            assert shape == [batch if size == -1 else size for size in expected]


FORMATS = {
    "fused half": ["HWC8", "LINEAR"],
    "fused bf16, fixed batch": ["HWC8", "LINEAR"],
    "fused float": ["HWC", "LINEAR"],
    "fused half, channels padded": ["HWC8", "LINEAR"],
    "fused int8, channels padded": ["CHW32", "HWC16", "LINEAR"],
    # Their statistics have one entry per channel whatever the layout of the next node is.
    "statistics, channels not a multiple of 8": ["LINEAR"],
    "apply": ["HWC16", "LINEAR"],
    "excitation": ["LINEAR"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_builder_is_offered_every_layout_that_has_kernels(answers, name):
    answer, dtype = answers["answers"][name], CASES[name]["dtype"]
    offered = [format_ for offered_type, format_, _ in answer["offered"] if offered_type == dtype]
    assert offered == FORMATS[name]
    assert [launch["format"] for launch in answer["launches"] if launch["tactic"]]


def test_float_gates_are_offered_in_every_float_type(answers):
    offered = answers["answers"]["fused half"]["offered"]
    assert {dtype for dtype, _, _ in offered} == {"FLOAT", "HALF", "BF16"}
    assert all(of_input == of_output for _, of_input, of_output in offered)


def test_int8_gates_are_offered_in_int8_alone(answers):
    assert {dtype for dtype, *_ in answers["answers"]["fused int8"]["offered"]} == {"INT8"}


def test_tactics_are_few_positive_and_make_different_launches(launches):
    for launch in launches:
        assert 1 <= len(launch["tactics"]) <= 4
        assert min(launch["tactics"]) > 0
    distinct = {
        (one["format"], one["name"], tuple(one["integers"]), *one["grid"]) for one in launches
    }
    assert len(distinct) == len(launches)


def test_grid_grows_with_the_batch_in_whole_clusters(case, launches):
    for launch in launches:
        cluster = re.search(r"\.reqnctapercluster\s+(\d+)", launch["ptx"])
        if CASES[case]["inputs"][0][0] == -1:
            per_image = launch["grid"][0]
            assert launch["grid"] == [batch * per_image for batch in BATCHES]
        else:
            per_image = launch["grid"][0] // CASES[case]["inputs"][0][0]
            assert len(set(launch["grid"])) == 1
        assert per_image % int(cluster[1] if cluster else 1) == 0
        assert launch["other"] == [1, 1, 1, 1]


def test_kernel_keeps_to_the_shared_memory_that_needs_no_asking(launches):
    for launch in launches:
        assert launch["shared_bytes"] <= 48 * 1024
        static = re.findall(r"(?<!\.extern )\.shared [^;]*\[(\d+)\]", launch["ptx"])
        assert not static
        (threads,) = re.findall(r"\.maxntid\s+(\d+)", launch["ptx"])
        assert launch["threads"] == int(threads)


def test_kernel_takes_inputs_then_integers_then_outputs(case, launches):
    """As TensorRT passes them: what a wrong order would do, no type would catch."""
    given = CASES[case]
    node = NODES[given["operator"]]
    for launch in launches:
        before, _, after = launch["ptx"].partition(f".entry {launch['name']}(")
        assert after, "the PTX has no such kernel"
        assert ".entry" not in before + after, "the PTX has another kernel too"
        parameters = re.findall(r"\.param \.(\w+)", after.partition(")")[0])
        expected = ["u64"] * len(node.inputs) + ["u32"] * len(launch["integers"])
        assert parameters == [*expected, *["u64"] * len(node.outputs)]
        assert launch["all_int32"]
        assert "\0" not in launch["ptx"]


def test_ptx_loads_under_a_driver_of_cuda_13_0(case, launches):
    major, minor = CASES[case]["capability"]
    for launch in launches:
        (version,) = re.findall(r"\.version (\d+)\.(\d+)", launch["ptx"])
        assert tuple(map(int, version)) <= (9, 0)
        assert re.search(rf"\.target sm_{major}{minor}\b", launch["ptx"])


def test_int8_scales_travel_as_the_bits_of_floats(answers):
    (launch, *_) = answers["answers"]["fused int8, channels padded"]["launches"]
    bits = launch["integers"][-3:]
    assert [struct.unpack("<f", struct.pack("<i", one))[0] for one in bits] == list(SCALES.values())


def test_padded_channels_are_told_to_the_kernel(answers):
    by_format = {
        launch["format"]: launch["integers"][:2]
        for launch in answers["answers"]["fused int8, channels padded"]["launches"]
    }
    assert by_format == {"CHW32": [48, 64], "HWC16": [48, 48], "LINEAR": [48, 48]}


def test_without_tensorrt_the_hint_names_the_other_way(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingCapability, match=r"tensorrt.plugin cannot be loaded") as missing:
        tensorrt_plugin.register(embedding_limits((9, 0)), ())
    assert "--gate native" in missing.value.hint


@pytest.mark.parametrize(
    ("capability", "counts_as"), [((9, 0), 90), ((8, 7), 86), ((10, 3), 100), ((12, 1), 120)]
)
def test_gpu_without_kernels_of_its_own_takes_those_of_the_one_before(capability, counts_as):
    limits = embedding_limits(capability)
    assert (limits.capability, limits.block_shared_bytes) == (counts_as, 48 * 1024)


def test_gpu_older_than_the_kernels_is_refused():
    with pytest.raises(BadInput, match=r"7.0 is older"):
        embedding_limits((7, 0))
