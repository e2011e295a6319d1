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
# 64 pixels instead of 640, and as many points of mAP as four pictures tell apart; what bench
# measures is not looked at here.
COMMANDS = [shlex.split(line.replace("640", "64").replace("0.5%", "2%")) for line in LINES]
SIDE = 64
OUTPUTS = ["output0", "p3", "p4"]
# Width and height of each picture, and of each square its class and where its middle lies.
PICTURES = (
    ((90, 60), ((0, 0.3, 0.4), (1, 0.75, 0.6))),
    ((64, 64), ((1, 0.3, 0.3), (0, 0.7, 0.7))),
    ((50, 120), ((0, 0.5, 0.2), (1, 0.5, 0.8))),
    ((200, 100), ((1, 0.2, 0.5), (0, 0.6, 0.6))),
)
COLOURS = ((255, 0, 0), (0, 0, 255))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A detector as torch's older exporter writes it, and pictures of several sizes with labels."""
    import torch

    folder = tmp_path_factory.mktemp("any")
    for name in ("pictures", "labels"):
        (folder / name).mkdir()
    inputs, boxes = zip(*(draw(folder, index) for index in range(len(PICTURES))), strict=True)
    network = trained(torch.from_numpy(np.stack(inputs)), boxes)
    free = {0: "batch", 2: "height", 3: "width"}
    axes = {name: {0: "batch", 2: f"{name}_rows", 3: f"{name}_columns"} for name in ("p3", "p4")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            torch.zeros(1, 3, SIDE, SIDE),
            folder / "yolo.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=OUTPUTS,
            dynamic_axes={"images": free, "output0": {0: "batch", 2: "anchors"}, **axes},
            verbose=False,
        )
    return folder


def draw(folder, index):
    """Write a picture of squares and its labels; give it letterboxed, [3, 64, 64], and boxes."""
    (width, height), squares = PICTURES[index]
    random, size = np.random.default_rng(index), np.array([width, height])
    levels = np.repeat(random.integers(60, 200, (height, width, 1), np.uint8), 3, axis=2)
    side = max(width, height) // 4
    middles = []
    for kind, *middle in squares:
        left, top = np.round(np.array(middle) * size - side / 2).astype(int)
        levels[top : top + side, left : left + side] = COLOURS[kind]
        middles.append((kind, left + side / 2, top + side / 2))
    lines = [f"{k} {x / width} {y / height} {side / width} {side / height}" for k, x, y in middles]
    (folder / "labels" / f"{index}.txt").write_text("\n".join(lines))
    picture = Image.fromarray(levels)
    picture.save(folder / "pictures" / f"{index}.png")

    scale = SIDE / max(width, height)
    small = np.round(size * scale).astype(int)
    left, top = (SIDE - small) // 2
    framed = Image.new("RGB", (SIDE, SIDE), (114, 114, 114))
    framed.paste(picture.resize(tuple(small.tolist()), Image.Resampling.BILINEAR), (left, top))
    boxes = [
        (k, x * scale + left, y * scale + top, side * scale, side * scale) for k, x, y in middles
    ]
    return np.asarray(framed, np.float32).transpose(2, 0, 1) / 255, boxes


def trained(inputs, boxes):
    """A detector that has learnt these pictures by heart; its coarse places find the squares."""
    import torch
    from torch.nn import functional

    sys.path.insert(0, str(Path(__file__).parents[1] / "exporters" / "gates"))
    from ultralytics_networks import ExportedDetector

    rows = [(index, *box) for index, found in enumerate(boxes) for box in found]
    picture, kind = torch.tensor([row[:2] for row in rows]).T
    wanted = torch.tensor([row[2:] for row in rows], dtype=torch.float32)
    columns, lines = (wanted[:, :2] // 8).long().T
    place = (SIDE // 4) ** 2 + lines * (SIDE // 8) + columns
    torch.manual_seed(0)
    network = ExportedDetector()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=100)
    for _ in range(rates.total_steps):
        found = network(inputs)[0]
        truth = torch.zeros_like(found[:, 4:])
        truth[picture, kind, place] = 1
        loss = functional.binary_cross_entropy(found[:, 4:], truth, reduction="sum") / len(rows)
        loss = loss + (found[picture, :4, place] - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return network.eval()


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
        *("inspect", "complexity", "fuse", "validate", "convert", "evaluate", "bench"),
        "build-engine",
    }
    assert "preprocessing not recorded" in said["inspect yolo.onnx"]
    assert "images float32 [batch, 3, height, width]" in said["inspect yolo.onnx"]
    assert "letterbox 64, pad 114, rgb, /255" in said["inspect yolo.int8.onnx"]
    assert re.search(r"yolo\.onnx onnxruntime-cpu \S+ 100\.00%", said["evaluate yolo.onnx"])
    for name in ("fused", "fp16", "int8"):
        graph = onnx.load(f"yolo.{name}.onnx").graph
        assert [output.name for output in graph.output] == OUTPUTS
        assert sum(node.domain == "cbam_deploy" for node in graph.node) == 3
    assert re.search(r"budget: passed .*\(float32\) 100\.00%", said["convert yolo.fused.onnx"])
    measured = json.loads(Path("bench.json").read_text())["entries"]
    assert {entry["runtime"] for entry in measured} == {"onnxruntime-cpu", "openvino-cpu"}
    assert len(measured) == 6
    assert [o["name"] for o in json.loads(Path("yolo.engine.json").read_text())["outputs"]] == (
        OUTPUTS
    )
