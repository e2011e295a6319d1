"""What `search` finds in a CBAM-ResNet-50 in which places that bear no low precision are planted.

Weights are scaled between two convolutions of a block, which changes nothing in float32: all
channels by 10^6, beyond FP16's range, or one by 10^4, beside which INT8 rounds the others away.

    python benchmarks/planted_search.py --output planted
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from cbam_deploy import export_onnx, search_precision, validate
from cbam_deploy.precision_search.section import snr
from cbam_deploy.report.html import write_page

OVERFLOWS = ("layer2.1", "layer4.2")
OUTLIERS = ("layer1.1", "layer3.0", "layer4.0")


def plant(
    source: Path, output: Path, overflows: tuple[str, ...], outliers: tuple[str, ...]
) -> None:
    """Write `source` with the weights of these blocks scaled."""
    model = ir.load(source)
    weights = model.graph.initializers
    biases = {
        node.inputs[1].name: node.inputs[2].name
        for node in model.graph
        if node.op_type == "Conv" and len(node.inputs) > 2
    }

    def scale(name: str, factor: np.ndarray) -> None:
        tensor = weights[name].const_value
        assert tensor is not None
        weights[name].const_value = ir.tensor(tensor.numpy() * factor, name=name)

    for block in (*overflows, *outliers):
        first, second = f"{block}.conv1.weight", f"{block}.conv2.weight"
        kernel = weights[first].const_value.numpy()
        factor = np.ones(len(kernel), np.float32)
        if block in overflows:
            factor[:] = 1e6
        else:
            factor[np.square(kernel).sum(axis=(1, 2, 3)).argmax()] = 1e4
        scale(first, factor[:, None, None, None])
        if first in biases:
            scale(biases[first], factor)
        scale(second, 1 / factor[None, :, None, None])
    ir.save(model, output)


def main() -> None:
    """Search the planted networks, and print a row of Markdown for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("planted"))
    parser.add_argument("--data", default="photos")
    folder = (arguments := parser.parse_args()).output
    folder.mkdir(exist_ok=True)
    export_onnx("resnet50", folder / "r50.onnx")
    print("| planted | lowest | kept higher | fidelity, SNR | trials | wall | CPU | validate |")
    print("|---|---|---|---|---|---|---|---|")
    for name, precision, overflows, outliers in (
        ("overflow", "fp16", OVERFLOWS, ()),
        ("int8", "int8", (), OUTLIERS),
    ):
        source, found = folder / f"{name}.onnx", folder / f"{name}.found.onnx"
        plant(folder / "r50.onnx", source, overflows, outliers)
        wall, cpu = time.perf_counter(), _cpu_seconds()
        result = search_precision(
            source, found, data=arguments.data, precision=precision, cache=folder / "cache"
        )
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        write_page(result, folder / f"{name}.html")
        passed = validate(found, reference=str(source), data=arguments.data, limit=4).passed
        kept = "; ".join(f"{one.group} ({', '.join(one.nodes)})" for one in result.kept)
        print(
            f"| {', '.join((*overflows, *outliers))} | {precision} | {kept} |"
            f" {result.unit.text(result.value)}, {snr(result.noise)} | {result.measured} |"
            f" {wall:.0f} s | {cpu:.0f} s | {'passed' if passed else 'failed'} |",
            flush=True,
        )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
