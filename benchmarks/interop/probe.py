"""Give ONNX files to one tool, in an environment that has that tool and not us.

    python probe.py TOOL TASKS.json RESULTS.jsonl

A task is ``model`` (a file), ``feeds`` (an ``.npz`` of its inputs) and ``output`` (a path without
suffix). What a tool computes goes to ``output``.npz, a model that it makes to ``output``.onnx; each
task's end is one line of RESULTS, so that a tool that takes the process down loses one task only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, Any]
Outputs = Mapping[str, Any]
LOADING = """
import ncnn, sys
net = ncnn.Net()
sys.exit(net.load_param(sys.argv[1]) != 0 or net.load_model(sys.argv[2]) != 0)
"""


def main(tool: str, tasks: str, results: str) -> None:
    probe = PROBES[tool]
    for task in json.loads(Path(tasks).read_text()):
        model, output = Path(task["model"]), Path(task["output"])
        feeds = dict(np.load(task["feeds"]))
        refusal = None
        try:
            found = probe(model, feeds, output)
        except Exception as error:  # Tools refuse in many ways.
            lines = str(error).split()
            refusal = f"{type(error).__name__}: {' '.join(lines)}"
        else:
            if found is not None:
                np.savez(output.with_name(f"{output.name}.npz"), **found)
        with Path(results).open("a") as file:
            file.write(json.dumps({"model": task["model"], "refusal": refusal}) + "\n")


def checker(model: Path, feeds: Feeds, output: Path) -> None:  # noqa: ARG001
    import onnx

    onnx.checker.check_model(str(model), full_check=True)


def inliner(model: Path, feeds: Feeds, output: Path) -> None:  # noqa: ARG001
    import onnx
    import onnx.inliner

    inlined = onnx.inliner.inline_local_functions(onnx.load(model))
    onnx.save(inlined, f"{output}.onnx")


def onnxslim(model: Path, feeds: Feeds, output: Path) -> None:  # noqa: ARG001
    import onnxslim

    onnxslim.slim(str(model), f"{output}.onnx")


def onnxsim(model: Path, feeds: Feeds, output: Path) -> None:  # noqa: ARG001
    import onnx
    import onnxsim

    simplified, same = onnxsim.simplify(onnx.load(model))
    if not same:
        raise ValueError("simplified, the model computes something else, says onnxsim")
    onnx.save(simplified, f"{output}.onnx")


def polygraphy_inspect(model: Path, feeds: Feeds, output: Path) -> None:  # noqa: ARG001
    _command("polygraphy", "inspect", "model", str(model), "--show", "layers")


def polygraphy_sanitize(model: Path, feeds: Feeds, output: Path) -> None:  # noqa: ARG001
    options = ("--fold-constants", "--cleanup", "-o", f"{output}.onnx")
    _command("polygraphy", "surgeon", "sanitize", str(model), *options)


def polygraphy_run(model: Path, feeds: Feeds, output: Path) -> Outputs:
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    inputs, found = f"{output}.inputs.json", f"{output}.outputs.json"
    save_json([feeds], inputs)
    options = ("--onnxrt", "--load-inputs", inputs, "--save-outputs", found)
    _command("polygraphy", "run", str(model), *options)
    (_, iterations), *_ = RunResults.load(found)
    return dict(iterations[0].items())


def onnxruntime(model: Path, feeds: Feeds, output: Path) -> Outputs:  # noqa: ARG001
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def openvino(model: Path, feeds: Feeds, output: Path) -> Outputs:  # noqa: ARG001
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # It would report us.
    import openvino as ov

    core = ov.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(str(model)), "CPU", options)
    found = compiled(feeds)
    return {port.get_any_name(): np.array(found[port]) for port in compiled.outputs}


def onnx2torch(model: Path, feeds: Feeds, output: Path) -> Outputs:  # noqa: ARG001
    import onnx
    import torch
    from onnx2torch import convert

    proto = onnx.load(model)
    module = convert(proto).eval()
    with torch.inference_mode():
        found = module(*(torch.from_numpy(feeds[value.name]) for value in proto.graph.input))
    return {proto.graph.output[0].name: found.numpy()}


def pnnx(model: Path, feeds: Feeds, output: Path) -> Outputs:
    """By pnnx to ncnn, which takes one picture at a time."""
    import ncnn
    import onnx

    proto = onnx.load(model)
    (name,) = (value.name for value in proto.graph.input)
    shape = (1, *feeds[name].shape[1:])
    folder = output.with_name(f"{output.name}-pnnx")
    folder.mkdir(exist_ok=True)
    copy = folder / "network.onnx"
    copy.write_bytes(model.read_bytes())
    said = _command("pnnx", str(copy), f"inputshape=[{','.join(map(str, shape))}]", "fp16=0")
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    paths = [str(folder / f"network.ncnn.{kind}") for kind in ("param", "bin")]
    if not Path(paths[0]).exists():
        raise ValueError(f"pnnx wrote no network: {said[-200:]}")
    _command("python", "-c", LOADING, *paths)  # In a process of its own, ncnn's words can be read.
    net.load_param(paths[0])
    net.load_model(paths[1])
    rows = []
    for picture in feeds[name]:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(np.ascontiguousarray(picture)).clone())
            status, found = extractor.extract("out0")
            if status != 0:
                raise ValueError("ncnn cannot run what pnnx wrote")
            rows.append(np.array(found).reshape(-1))
    return {proto.graph.output[0].name: np.stack(rows)}


def modelopt(model: Path, feeds: Feeds, output: Path) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=feeds,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=f"{output}.onnx",
    )


def _command(program: str, *arguments: str) -> str:
    """What a program of this environment printed; its last two lines are raised if it failed."""
    path = Path(sys.executable).with_name(program)
    ended = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    printed = ended.stdout + ended.stderr
    if ended.returncode != 0:
        lines = [line for line in printed.splitlines() if line.strip()]
        raise ValueError(f"exit {ended.returncode}: {'; '.join(lines[-2:]) or 'no word'}")
    return printed


PROBES: dict[str, Callable[[Path, Feeds, Path], Outputs | None]] = {
    function.__name__: function
    for function in (
        checker,
        inliner,
        onnxslim,
        onnxsim,
        polygraphy_inspect,
        polygraphy_run,
        polygraphy_sanitize,
        onnxruntime,
        openvino,
        onnx2torch,
        pnnx,
        modelopt,
    )
}

if __name__ == "__main__":
    main(*sys.argv[1:])
