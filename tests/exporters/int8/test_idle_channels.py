"""Channels that never change on the calibration pictures are named, and few pictures remarked."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from cbam_deploy.exporters.int8.calibration import calibrate
from cbam_deploy.exporters.int8.channels import ChannelExtremes, IdleChannels, named
from cbam_deploy.exporters.int8.quantization import FEW_IMAGES, quantize

# Channel 1 is 0 behind the Relu, channel 2 is 3 everywhere.
NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[batch,3,4,4] input) => (float[batch,2,4,4] output)
<float[3] bias = {0, -9, 3}>
{
  wide = Conv (input, one, bias)
  relu = Relu (wide)
  output = Conv (relu, two)
}
"""


@pytest.fixture
def model():
    model = ir.from_proto(parser.parse_model(NETWORK))
    one = np.zeros((3, 3, 1, 1), np.float32)
    one[0, 0] = 1
    two = np.ones((2, 3, 1, 1), np.float32)
    for name, array in (("one", one), ("two", two)):
        value = next(v for node in model.graph for v in node.inputs if v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


def pictures(count):
    return np.random.default_rng(0).uniform(0, 1, (count, 3, 4, 4)).astype(np.float32)


def test_channels_are_idle_only_where_no_picture_changes_them():
    extremes = ChannelExtremes()
    first = np.zeros((2, 4, 3, 3), np.float32)
    first[:, 1], first[:, 2] = 5, 7
    extremes.add(first)
    assert extremes.idle() == IdleChannels(dead=(0, 3), constant=(1, 2))
    second = first.copy()
    second[:, 1] = 6  # The same everywhere on these pictures, but not as before.
    second[1, 2, 0, 0], second[0, 3, 2, 2] = 8, 1e-20
    extremes.add(second)
    assert extremes.idle() == IdleChannels(dead=(0,))


def test_what_has_no_channels_has_none_that_are_idle():
    extremes = ChannelExtremes()
    extremes.add(np.zeros(5, np.float32))
    assert extremes.idle() == IdleChannels()


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_calibration_finds_dead_and_constant_channels_by_tensor(model, method):
    found = calibrate(model, ["input", "relu"], [pictures(5)], method=method).idle
    assert found == {"relu": IdleChannels(dead=(1,), constant=(2,))}


@pytest.mark.parametrize(("count", "remarks"), [(3, 1), (FEW_IMAGES - 1, 1), (FEW_IMAGES, 0)])
def test_few_pictures_draw_a_remark_and_idle_channels_are_named(model, count, remarks):
    _, report = quantize(model, [pictures(count)])
    (section,) = report.sections()
    assert len(section.notes) == remarks
    assert all(f"from {count} pictures" in note for note in section.notes)
    facts: dict[str, str] = dict(section.tables[0].rows)
    assert facts["dead channels"] == "1 (relu: 1)"
    assert facts["constant channels"] == "1 (relu: 2)"
    assert report.to_json()["idle_channels"] == {"relu": {"dead": [1], "constant": [2]}}


def test_many_channels_and_tensors_are_counted_where_they_are_not_named():
    assert named({}) == named({"a": ()}) == ""
    assert named({"a": tuple(range(7))}) == "7 (a: 0, 1, 2, 3, 4 and 2 more)"
    many = dict.fromkeys("abcdefg", (0,))
    assert named(many) == "7 (a: 0; b: 0; c: 0; d: 0; e: 0; 2 more tensors)"
