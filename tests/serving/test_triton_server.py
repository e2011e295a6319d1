"""A genuine Triton server loads what `package` writes, answers like the artefact, loses nothing."""

from __future__ import annotations

import importlib
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from benchmarks.triton_server import INSTALL, answers, find_server, free_ports, serving
from cbam_deploy import check_server, open_runtime, package
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.numerics.tolerances import OUTPUTS, check

tritonclient = pytest.importorskip("tritonclient")
server = find_server()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(server is None, reason=f"no Triton server is here: {INSTALL}"),
]
REQUESTS, CLIENTS = 2_000, 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of several sizes and formats."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index, (height, width) in enumerate(((8, 8), (30, 20), (9, 40), (16, 16))):
        levels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(levels).save(
            folder / f"{index}.{'png' if index % 2 else 'jpg'}", quality=95
        )
    return folder


@pytest.fixture(scope="module")
def models(classifier_onnx, pictures, tmp_path_factory):
    """The network in the Python backend, and the two models that take pictures."""
    folder = tmp_path_factory.mktemp("served") / "models"
    package(
        [classifier_onnx],
        triton=folder,
        backend="python",
        pictures=True,
        data=str(pictures),
        threads=1,
        max_batch=4,
    )
    return folder


class Client(threading.Thread):
    """Sends its share of requests one by one; while it may not send, its connection is closed."""

    def __init__(self, protocol, address, requests, may_send):
        super().__init__(daemon=True)
        self.module, self.address = importlib.import_module(f"tritonclient.{protocol}"), address
        self.requests, self.may_send = requests, may_send
        self.answers, self.failures = {}, []

    def run(self):
        client = self.module.InferenceServerClient(self.address)
        for index, image in self.requests:
            if not self.may_send.is_set():
                client.close()
                self.may_send.wait(60)
                client = self.module.InferenceServerClient(self.address)
            given = self.module.InferInput("image", (1, *image.shape), "FP32")
            given.set_data_from_numpy(image[None])
            try:
                answer = client.infer("net", [given])
                self.answers[index] = answer.as_numpy("logits")
            except Exception as error:
                self.failures.append((index, repr(error)))


def until(holds):
    """Wait for something, but not for ever."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_request_is_lost_when_the_server_stops_in_between(classifier_onnx, models, tmp_path):
    """2,000 different requests; after a quarter the server is asked to end, and started again."""
    images = np.random.default_rng(1).standard_normal((REQUESTS, 3, 8, 8)).astype(np.float32)
    with open_runtime(classifier_onnx) as runner:
        expected = runner.infer({"image": images})["logits"]
    http, grpc = free_ports(2)
    may_send = threading.Event()
    may_send.set()
    clients = []
    alone = ("--model-control-mode=explicit", "--load-model=net")
    with serving(server, models, tmp_path, *alone, ports=(http, grpc)) as running:
        for number in range(CLIENTS):
            protocol = ("http", "grpc")[number % 2]
            address = running.http if protocol == "http" else running.grpc
            share = [(i, images[i]) for i in range(number, REQUESTS, CLIENTS)]
            clients.append(Client(protocol, address, share, may_send))
            clients[-1].start()
        until(lambda: sum(len(client.answers) for client in clients) >= REQUESTS // 4)
        running.process.terminate()
        # As what balances load between servers does: it takes them away from one that is not ready.
        until(lambda: not answers(running, "ready"))
        may_send.clear()
        assert running.stop() == 0
    before = sum(len(client.answers) for client in clients)
    assert REQUESTS // 4 <= before < REQUESTS
    with serving(server, models, tmp_path, *alone, ports=(http, grpc)):
        may_send.set()
        for client in clients:
            client.join(60)
        assert not any(client.is_alive() for client in clients)
    assert [client.failures for client in clients] == [[]] * CLIENTS
    answered = {index: one for client in clients for index, one in client.answers.items()}
    assert sorted(answered) == list(range(REQUESTS))
    got = np.concatenate([answered[index] for index in range(REQUESTS)])
    assert not check(tensor_error("logits", expected, got), OUTPUTS["fp32"])


@pytest.fixture(scope="module")
def running(models, tmp_path_factory):
    with serving(server, models, tmp_path_factory.mktemp("server")) as running:
        yield running


def test_check_finds_the_server_equal_by_both_protocols(running, classifier_onnx, pictures, cli):
    line = ("package", classifier_onnx, "--check", running.http, "--grpc", running.grpc)
    ended = cli(*line, "--data", pictures, "--pictures", "--limit", "4")
    assert (ended.code, ended.err) == (0, "")
    checked = check_server(
        classifier_onnx, running.http, grpc=running.grpc, data=str(pictures), pictures=True
    )
    assert checked.passed
    assert {(one.protocol, one.model) for one in checked.outputs} == {
        (protocol, model) for protocol in ("HTTP", "gRPC") for model in ("net", "net-pictures")
    }
    assert max(one.error.max_relative for one in checked.outputs) < 1e-6
    assert {one.batch for one in checked.outputs} == {1, 2, 4}


def test_check_notices_another_network(running, classifier_onnx, tmp_path, cli):
    import onnx
    from onnx import numpy_helper

    model = onnx.load(classifier_onnx)
    (weight,) = (one for one in model.graph.initializer if one.name == "classifier")
    weight.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), "classifier")
    )
    onnx.save(model, tmp_path / "net.onnx")
    ended = cli("package", tmp_path / "net.onnx", "--check", running.http, "--grpc", running.grpc)
    assert ended.code == 1
    assert "maximum error" in ended.error
    ended = cli(
        *("package", classifier_onnx, "--model-name", "other"),
        *("--check", running.http, "--grpc", running.grpc),
    )
    assert ended.code == 1
    assert "the server has no model other that is ready" in ended.error


def test_a_damaged_picture_is_refused_alone(running):
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    given = http.InferInput("PICTURES", (1, 1), "BYTES")
    given.set_data_from_numpy(np.array([[b"no picture"]], object))
    with (
        closing(http.InferenceServerClient(running.http)) as client,
        pytest.raises(InferenceServerException, match="cannot identify image"),
    ):
        client.infer("net-pictures", [given])


def test_only_the_backend_is_missing_for_onnx_runtime_and_tensorrt(
    classifier_onnx, engine, tmp_path
):
    """The server has the Python backend alone: it reads the configurations, and says just that."""
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    models = tmp_path / "models"
    package([classifier_onnx, engine()], triton=models)
    package([classifier_onnx], triton=models, model_name="damaged")
    (models / "damaged" / "config.pbtxt").open("a").write("no_such_field: 1\n")
    reasons = {
        "net-onnx": "unable to find backend library for backend 'onnxruntime'",
        "net-engine": "unable to find backend library for backend 'tensorrt'",
        "damaged": "no_such_field",
    }
    explicit = "--model-control-mode=explicit"
    with (
        serving(server, models, tmp_path, explicit, ready=False) as running,
        closing(http.InferenceServerClient(running.http)) as client,
    ):
        for model, reason in reasons.items():
            with pytest.raises(InferenceServerException) as refused:
                client.load_model(model)
            log = running.log.read_text(errors="replace")
            assert reason in (log if model == "damaged" else str(refused.value))
