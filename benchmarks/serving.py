"""Throughput and latency of a Triton server beside direct calls of ONNX Runtime, on one machine.

The file is packaged for the Python backend of the server that ``triton_server.py`` starts. In each
round every contender sends single samples for a while, in shuffled order: direct calls of
one session by as many threads as there are clients, and requests by HTTP and by gRPC. Server and
clients share the processor, and every session has one thread per operator.

    python -m benchmarks.serving net.onnx
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.triton_server import INSTALL, RunningServer, find_server, serving
from cbam_deploy import open_runtime, package
from cbam_deploy.artefacts import open_artefact
from cbam_deploy.data.feeds import noise
from cbam_deploy.machine import environment

CLIENTS = (1, 16)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in a round")
    arguments = parser.parse_args()
    server = find_server()
    if server is None:
        raise SystemExit(f"no Triton server is here: {INSTALL}")
    opened = open_artefact(arguments.artefact)
    feeds = noise(opened.inputs, 1, seed=0, image_size=opened.image_size, sizes=opened.sizes)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, open_runtime(opened, threads=1) as runner:
        models = Path(folder, "models")
        package([arguments.artefact], triton=models, backend="python", model_name="net", threads=1)
        with serving(server, models, Path(folder)) as running:
            calls = {
                "direct": lambda: (lambda: runner.infer(feeds), lambda: None),
                "HTTP": lambda: sender("tritonclient.http", running, feeds),
                "gRPC": lambda: sender("tritonclient.grpc", running, feeds),
            }
            cells = [(name, clients) for name in calls for clients in CLIENTS]
            figures: dict[tuple[str, int], list[tuple[float, list[float]]]] = {}
            for number in range(arguments.rounds):
                for name, clients in random.Random(number).sample(cells, len(cells)):
                    measured = round_of(calls[name], clients, arguments.seconds)
                    figures.setdefault((name, clients), []).append(measured)
    loads = f"load average {load:.0f} at the beginning, {os.getloadavg()[0]:.0f} at the end"
    print(f"{environment()['cpu']}, {environment()['cores']} cores; {loads}\n")
    print("| calls | clients | per second | over direct (rounds) | p50 ms | p99 ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for (name, clients), rounds in sorted(figures.items(), key=lambda one: cells.index(one[0])):
        direct = figures["direct", clients]
        rates = [rate for rate, _ in rounds]
        ratios = [own / base for own, (base, _) in zip(rates, direct, strict=True)]
        ratio = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        seconds = np.concatenate([times for _, times in rounds]) * 1e3
        p50, p99 = np.percentile(seconds, (50, 99))
        row = (name, clients, f"{np.median(rates):.0f}", ratio, f"{p50:.2f}", f"{p99:.2f}")
        print(f"| {' | '.join(map(str, row))} |")


def sender(module: str, running: RunningServer, feeds: dict[str, np.ndarray]):
    """What sends one request and waits for its answer, and what closes the connection."""
    client_module = importlib.import_module(module)
    address = running.http if module.endswith("http") else running.grpc
    client = client_module.InferenceServerClient(address)
    inputs = []
    for name, array in feeds.items():
        inputs.append(client_module.InferInput(name, array.shape, "FP32"))
        inputs[-1].set_data_from_numpy(array)
    return (lambda: client.infer("net", inputs)), client.close


def round_of(make: Callable, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Calls per second of all clients together, and the seconds of each call."""
    times: list[list[float]] = [[] for _ in range(clients)]
    start = threading.Barrier(clients)

    def call_for_a_while(own: list[float]) -> None:
        call, close = make()
        call()
        start.wait()
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            call()
            own.append(time.perf_counter() - begin)
        close()

    threads = [threading.Thread(target=call_for_a_while, args=(own,)) for own in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(map(len, times)) / seconds, [one for own in times for one in own]


if __name__ == "__main__":
    main()
