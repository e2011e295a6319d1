"""CPU seconds and peak memory of a command on chains of more and more nodes.

Chains are of Identity behind one convolution, or of convolutions and ReLUs by turns, on maps of
3 x 8 x 8. The command's process is measured, so that what loads in the machine does not count.

    python benchmarks/chain_commands.py identity 1000 10000 100000 -- convert {} -o {}.fp16.onnx
    python benchmarks/chain_commands.py conv 1000 2000 10000 -- convert {} -o {}.int8.onnx \\
        --precision int8 --calibration photos --images 2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def chain(kind: str, nodes: int) -> onnx.ModelProto:
    """A network of `nodes` nodes, one behind the other."""
    weights, made, last = {}, [], "x"
    for index in range(nodes):
        output = f"v{index}" if index < nodes - 1 else "y"
        if index == 0 or (kind == "conv" and index % 2 == 0):
            weights[f"w{index}"] = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
            made.append(helper.make_node("Conv", [last, f"w{index}"], [output], f"n{index}"))
        else:
            op = "Relu" if kind == "conv" else "Identity"
            made.append(helper.make_node(op, [last], [output], f"n{index}"))
        last = output
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]) for name in "xy"
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(made, kind, [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("identity", "conv"))
    parser.add_argument("nodes", type=int, nargs="+")
    own, command = sys.argv[1:], []
    if "--" in own:
        own, command = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    print("| nodes | exit code | CPU s | peak MB |\n| ---: | ---: | ---: | ---: |")
    for nodes in arguments.nodes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "chain.onnx"
            onnx.save(chain(arguments.kind, nodes), path)
            words = [word.replace("{}", str(path)) for word in command]
            process = subprocess.Popen(
                [sys.executable, "-m", "cbam_deploy", *words], stdout=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        print(f"| {nodes:,} | {code} | {seconds:.1f} | {usage.ru_maxrss / 1024:.0f} |", flush=True)


if __name__ == "__main__":
    main()
