"""`profile` from file to result, on tiny networks; nothing here depends on how fast they are."""

import json

import numpy as np
import pytest

from cbam_deploy import profile
from cbam_deploy.artefacts import open_onnx
from cbam_deploy.errors import BadInput
from cbam_deploy.profiling.origins import Origins
from cbam_deploy.report.html import write_page
from cbam_deploy.report.markdown import to_markdown


@pytest.fixture(scope="module")
def report(gated_file, int8_file):
    return profile([gated_file, int8_file], seconds=0.01, threads=1, batch_size=2)


def test_layers_are_named_as_in_the_file_and_belong_to_modules(report):
    layers = {layer.name: layer for layer in report.networks[0].layers if layer.kind != "reorder"}
    modules = {name: layer.module for name, layer in layers.items()}
    assert modules == {
        "stem_conv": "stem",
        "block_conv": "block.conv",
        "gate": "block.gate",
        "output": "head.exp",
    }
    assert layers["stem_conv"].fused == ("rectified",)  # The Relu, which has no name.


def test_a_gate_is_one_layer_with_all_that_its_body_became(report):
    (gate,) = [layer for layer in report.networks[0].layers if layer.kind == "gate"]
    assert gate.operator == "CbamGateAddRelu"
    assert gate.kernels > 10
    assert gate.precision == "fp32"


def test_layers_and_what_lies_outside_add_up_to_a_run(report):
    for network in report.networks:
        assert network.layers_seconds == sum(layer.seconds for layer in network.layers) > 0
        total = network.layers_seconds + network.outside_seconds
        assert total == pytest.approx(network.run_seconds)


def test_an_absorbed_convolution_runs_in_int8_and_its_q_and_dq_are_no_layers(report):
    layers = report.networks[1].layers
    (conv,) = [layer for layer in layers if layer.name == "node_features"]
    assert (conv.operator, conv.precision, conv.asked) == ("QLinearConv", "int8", "int8")
    assert conv.module == "stem"
    assert {"node_d_stem", "node_d_input", "node_q_features"} <= set(conv.fused)
    left = {layer.name for layer in layers if layer.kind == "quantize"}
    assert left == {"node_q_input", "node_d_features"}


def test_results_are_json_a_page_and_markdown(report, tmp_path):
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["schema"] == "cbam_deploy.profile"
    assert data["findings"] == list(report.findings)
    first = data["networks"][0]
    assert first["layers_seconds"] == pytest.approx(sum(e["seconds"] for e in first["layers"]))
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 3
    assert "block_conv" in page
    text = to_markdown(report.title, report.sections())
    assert "| gate | CbamGateAddRelu | block.gate |" in text


def test_the_command_shows_the_longest_layers_and_how_many_more_there_are(
    cli, gated_file, tmp_path
):
    page = tmp_path / "page.html"
    shown = cli(
        "profile", gated_file, "--seconds", "0.1", "--threads", "1", "--top", "1", "--html", page
    )
    assert shown.code == 0, shown.err
    assert "more)" in shown.out
    assert "attention gates" in shown.out
    assert page.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 0}, "a batch of 0"),
        ({"top": 0}, "0 layers to show"),
        ({"seconds": float("nan")}, "nan seconds"),
    ],
)
def test_options_that_cannot_work_are_refused(gated_file, options, complaint):
    with pytest.raises(BadInput, match=complaint):
        profile(gated_file, **options)


def test_more_than_two_artefacts_are_refused(cli, gated_file):
    refused = cli("profile", gated_file, gated_file, gated_file)
    assert refused.code == 2
    assert refused.err.startswith("error: 3 artefacts cannot be profiled side by side")


def test_what_a_file_asks_for_is_int8_between_dq_and_q_alone(gated_file, int8_file):
    found = Origins(open_onnx(int8_file).model)
    asked = {name: found.find(name).precision for name in ("node_features", "node_output")}
    assert asked == {"node_features": "int8", "node_output": "fp32"}
    assert found.find("node_d_stem").of_weights
    assert not found.find("node_d_input").of_weights
    assert Origins(open_onnx(gated_file).model).find("gate/mean").gate


def test_modules_of_pytorch_are_profiled_beside_the_file(tmp_path, gated_file, monkeypatch):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())\n"
    )
    report = profile(gated_file, reference=f"{tmp_path / 'net.py'}:make", seconds=0.01, threads=1)
    layers = {layer.name: layer for layer in report.networks[1].layers}
    assert set(layers) == {"(whole network)", "0", "1"}
    assert layers["0"].operator == "Conv2d"
    assert np.isfinite(report.networks[1].run_seconds)
