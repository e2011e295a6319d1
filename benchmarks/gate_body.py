"""What gates cost on a CPU: a network plain, with gates unfused, and fused, side by side.

    python benchmarks/gate_body.py [--rounds 40] [--batch 1 --batch 8] [--bodies] [--json FILE]
                                   [--gate eca] [--runtime openvino]

All files are run in turn, in an order drawn anew each round, so that a drifting machine favours
none; ratios are taken within rounds. Two clocks: wall-clock time with all threads, and CPU time of
one thread, which hardly notices other work on the machine. `--bodies` adds other ways to write the
body of the gate (`gate_bodies.py`). OpenVINO (`pip install openvino`) knows no operators of ours
and gets the fused file inlined, as `cbam-deploy inline` writes it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from gate_bodies import ALTERNATIVES, with_body
from numpy.typing import NDArray

from cbam_deploy import export_onnx, inline
from cbam_deploy.benchmarking.statistics import paired_ratio
from cbam_deploy.gates.description import parse_gate
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.machine import environment
from cbam_deploy.report.units import Estimate
from cbam_deploy.runtimes.openvino import load_openvino

Images = NDArray[np.float32]
Network = Callable[[Images], Images]

PLAIN, UNFUSED, FUSED = "plain", "unfused", "fused"
AIM = 1.08


@dataclass(frozen=True)
class Clock:
    """A way to time a run, and the number of threads it makes sense with."""

    name: str
    threads: int
    read: Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--gate", type=parse_gate, default=parse_gate("cbam"))
    parser.add_argument("--runtime", choices=NETWORKS, default="onnxruntime")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bodies", action="store_true", help="compare other bodies too")
    parser.add_argument("--json", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    clocks = (
        Clock("wall", given.threads, time.perf_counter),
        Clock("cpu", 1, time.process_time),
    )
    with tempfile.TemporaryDirectory() as folder:
        models = exported(Path(folder), given)
        figures = [
            figure
            for batch in given.batch or (1, 8)
            for clock in clocks
            for figure in compare(models, clock, batch, given)
        ]
    report(given, figures)
    if given.json:
        content = {"environment": environment(), "figures": [asdict(figure) for figure in figures]}
        given.json.write_text(json.dumps(content, indent=1))


def exported(folder: Path, given: argparse.Namespace) -> dict[str, bytes]:
    """The models to compare, by name; the plain network first."""
    files = {kind: folder / f"{kind}.onnx" for kind in (PLAIN, UNFUSED, FUSED)}
    size = given.image_size
    export_onnx(given.model, files[PLAIN], attention="none", image_size=size)
    export_onnx(given.model, files[UNFUSED], gate=given.gate, image_size=size, fuse=False)
    export_onnx(given.model, files[FUSED], gate=given.gate, image_size=size)
    if given.runtime == "openvino":
        inline(files[FUSED], folder / "inlined.onnx")
        files[FUSED] = folder / "inlined.onnx"
    models = {kind: path.read_bytes() for kind, path in files.items()}
    if given.bodies:
        fused = onnx.load(files[FUSED])
        models |= {body: with_body(fused, body).SerializeToString() for body in ALTERNATIVES}
    return models


@dataclass(frozen=True)
class Figure:
    """One model at one batch by one clock: seconds per image, and the ratios to two others."""

    model: str
    batch: int
    clock: str
    threads: int
    rounds: int
    seconds_per_image: float
    ratio: Estimate
    to_unfused: Estimate


def compare(
    models: dict[str, bytes], clock: Clock, batch: int, given: argparse.Namespace
) -> list[Figure]:
    """Time every model as many rounds as asked for, interleaved."""
    size, rounds = given.image_size, given.rounds
    random = np.random.default_rng(0)
    pictures = random.standard_normal((batch, 3, size, size), dtype=np.float32)
    networks = [NETWORKS[given.runtime](model, clock.threads) for model in models.values()]
    outputs = [network(pictures) for network in networks]
    for output in outputs[2:]:
        np.testing.assert_allclose(output, outputs[1], atol=1e-4 * np.abs(outputs[1]).max())
    seconds = np.empty((len(networks), rounds))
    for number in range(rounds):
        for index in random.permutation(len(networks)):
            begin = clock.read()
            networks[index](pictures)
            seconds[index, number] = clock.read() - begin
    return [
        Figure(
            name,
            batch,
            clock.name,
            clock.threads,
            rounds,
            float(np.median(seconds[index])) / batch,
            paired_ratio(seconds[index], seconds[0], seed=0),
            paired_ratio(seconds[index], seconds[1], seed=0),
        )
        for index, name in enumerate(models)
    ]


def _in_onnxruntime(model: bytes, threads: int) -> Network:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # A session's idle threads would else spin for a while and slow the next one's run.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"input": pictures})[0]


def _in_openvino(model: bytes, threads: int) -> Network:
    core = load_openvino().Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    request = compiled.create_infer_request()
    return lambda pictures: np.array(request.infer([pictures])[0])


NETWORKS: dict[str, Callable[[bytes, int], Network]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
}


def report(given: argparse.Namespace, figures: list[Figure]) -> None:
    """Print a Markdown record."""
    here = environment()
    packages = {key: here["packages"][key] for key in ("onnxruntime", "onnx", "torch")}
    size, gate = given.image_size, operator_for(given.gate).name
    what = f"{given.model} at {size}x{size} with {gate}"
    print(f"{what} in {given.runtime}; {figures[0].rounds} interleaved rounds\n")
    print(f"Machine: {here['cpu']}, {here['cores']} cores, {here['os']}, Python {here['python']}")
    print(f"Versions: {packages}\n")
    print("| batch | clock, threads | model | ms per image | ratio to plain | to unfused (95%) |")
    print("|---|---|---|---|---|---|")
    for figure in figures:
        ratio, beside = figure.ratio, figure.to_unfused
        print(
            f"| {figure.batch} | {figure.clock}, {figure.threads} | {figure.model} "
            f"| {figure.seconds_per_image * 1e3:.1f} "
            f"| {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) "
            f"| {beside.value:.3f} ({beside.low:.3f} to {beside.high:.3f}) |"
        )
    worst = max((f.ratio.value for f in figures if f.model == FUSED), default=0.0)
    print(f"\nFused: at most {worst:.3f} times plain; the aim is below {AIM}.")


if __name__ == "__main__":
    main()
