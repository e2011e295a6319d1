"""The road of docs/any-onnx.md is gone as it stands, command by command, at a tenth of the size."""

import json
import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

PAGE = Path(__file__).parents[2].joinpath("docs", "any-onnx.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    cbam-deploy (.+)$", PAGE.replace("\\\n", " "), re.M)
# 64 pixels instead of 640; what bench measures is not looked at here.
COMMANDS = [shlex.split(re.sub(r"\b640\b", "64", line)) for line in LINES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A detector as torch's older exporter writes it, and pictures of several sizes."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "exporters" / "gates"))
    from ultralytics_networks import Detector

    folder = tmp_path_factory.mktemp("any")
    torch.manual_seed(0)
    free = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Detector().eval(),
            torch.zeros(1, 3, 64, 64),
            folder / "yolo.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["p3", "p4", "p5"],
            dynamic_axes={"images": free, **{name: {0: "batch"} for name in ("p3", "p4", "p5")}},
            verbose=False,
        )
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for index, size in enumerate([(90, 60), (64, 64), (50, 120), (200, 100)]):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / "pictures" / f"{index}.png")
    return folder


@pytest.mark.slow
def test_every_command_does_what_the_page_says(folder, cli, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("cbam_deploy.benchmarking.memory.applies_to", lambda _: False)
    monkeypatch.setattr("cbam_deploy.benchmarking.interleaving.ROUND_SECONDS", 0.005)
    monkeypatch.setattr("cbam_deploy.benchmarking.warm_up.CHUNK_SECONDS", 0.002)
    said = {}
    for command in COMMANDS:
        extra = ["--seconds", "0.1"] if command[0] == "bench" else []
        ended = cli(*command, *extra)
        assert (ended.code, ended.err) == (0, ""), " ".join(command) + ended.err
        said[" ".join(command[:2])] = " ".join(ended.out.split())
    assert {command[0] for command in COMMANDS} == {
        *("inspect", "complexity", "fuse", "validate", "convert", "bench", "build-engine")
    }
    assert "preprocessing not recorded" in said["inspect yolo.onnx"]
    assert "images float32 [batch, 3, height, width]" in said["inspect yolo.onnx"]
    assert "letterbox 64, pad 114, rgb, /255" in said["inspect yolo.int8.onnx"]
    for name in ("fused", "fp16", "int8"):
        graph = onnx.load(f"yolo.{name}.onnx").graph
        assert [output.name for output in graph.output] == ["p3", "p4", "p5"]
        assert sum(node.domain == "cbam_deploy" for node in graph.node) == 4
    assert [o["name"] for o in json.loads(Path("yolo.engine.json").read_text())["outputs"]] == [
        *("p3", "p4", "p5")
    ]
