"""A running server held against the artefact that it serves, by HTTP and by gRPC."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.artefacts import Artefact, open_artefact
from cbam_deploy.comparison.layer_report import ERROR_COLUMNS, error_cells
from cbam_deploy.data.feeds import InputStream, default_batches
from cbam_deploy.data.network_input import network_feeds
from cbam_deploy.errors import BadInput, imports_for, in_one_line
from cbam_deploy.library_errors import said_of_the_file
from cbam_deploy.numerics.metrics import ErrorAccumulator, TensorError
from cbam_deploy.numerics.tensors import Arrays, Feeds
from cbam_deploy.numerics.tolerances import OUTPUTS, check
from cbam_deploy.preprocessing.choice import Asked, idle_preprocessing
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import percent
from cbam_deploy.runtimes import open_runtime
from cbam_deploy.serving.packaging import PICTURES_SUFFIX
from cbam_deploy.serving.triton_config import PICTURES

PROTOCOLS = {"HTTP": "tritonclient.http", "gRPC": "tritonclient.grpc"}
_ADDRESS = re.compile(r"(?:http://|grpc://)?([\w.-]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?/?")
_HTTP_PORT = 8000
_LARGEST_BATCH = 8  # To send where the artefact has no largest one.
_SECONDS = 60.0  # What an answer may take.


@dataclass(frozen=True)
class ServedOutput:
    """One output of a server against the artefact's own.

    Attributes:
        protocol: ``HTTP`` or ``gRPC``.
        model: name on the server.
        batch: batch size.
        samples: number of inputs compared.
        error: of the server's output.
        failures: a sentence for each figure that leaves the precision's tolerance.
    """

    protocol: str
    model: str
    batch: int
    samples: int
    error: TensorError
    failures: tuple[str, ...]


@dataclass(frozen=True)
class ServerCheck(Result):
    """Whether a server computes what the artefact computes.

    Attributes:
        artefact: path as given.
        url: of the server.
        runtime: that the artefact ran in here.
        precision: as the file records it; decides the tolerance.
        inputs: what both sides were fed.
        outputs: one entry for each protocol, batch size and output.
        refusals: what the server refused to do.
    """

    title: ClassVar[str] = "Check of a server"
    schema: ClassVar[str] = "cbam_deploy.server_check"

    artefact: str
    url: str
    runtime: str
    precision: str
    inputs: str
    outputs: tuple[ServedOutput, ...]
    refusals: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the server answered everything, within tolerance."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for everything that did not hold."""
        found = [
            f"{one.protocol}, {one.model}, batch {one.batch}, {one.error.name}: {sentence}"
            for one in self.outputs
            for sentence in one.failures
        ]
        return (*self.refusals, *found)

    def failure(self) -> tuple[str, str]:
        """What to tell a person when the check did not hold: a message and a hint."""
        first, *others = self.failures
        more = f" (and {len(others)} more)" if others else ""
        return (
            f"{self.url}: does not serve {self.artefact}: {first}{more}",
            "package the artefact again, and let the server load that",
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {**super().to_json(), "failures": list(self.failures)}

    def sections(self) -> tuple[Section, ...]:
        """The error of every output, by protocol and batch size."""
        table = Table(
            ("protocol", "model", "output", "batch", "samples", *ERROR_COLUMNS, "top-1"),
            tuple(
                (
                    *(one.protocol, one.model, one.error.name, str(one.batch), str(one.samples)),
                    *error_cells(one.error),
                    percent(one.error.top1_agreement),
                )
                for one in self.outputs
            ),
            text_columns=3,
            emphasized=tuple(i for i, one in enumerate(self.outputs) if one.failures),
            spare=("samples", "max abs", "cosine", "model"),
        )
        intro = (
            f"{self.url} against {self.artefact} ({self.precision}, {self.runtime}), on"
            f" {self.inputs}."
        )
        return (
            Section(
                self.title, intro, self.passed, tables=(table,) if self.outputs else (),
                failures=self.failures,
            ),
        )  # fmt: skip


@said_of_the_file
def check_server(
    artefact: str | Path,
    url: str = "localhost:8000",
    *,
    grpc: str | None = None,
    model_name: str | None = None,
    pictures: bool = False,
    data: str | None = None,
    preprocessing: Asked | None = None,
    sizes: Sequence[str] = (),
    batch_sizes: Sequence[int] | None = None,
    device: str | None = None,
    limit: int = 16,
    seed: int = 0,
) -> ServerCheck:
    """Send inputs to a running Triton server, and compare with the artefact's own outputs.

    Args:
        artefact: what the server is said to serve.
        url: of its HTTP, such as ``localhost:8000``.
        grpc: of its gRPC; by default the next port of the same host.
        model_name: by default that of the file.
        pictures: also send the encoded pictures of `data` to the ensemble of that name.
        data: SOURCE of pictures or tensors; seeded noise by default.
        preprocessing: how pictures become inputs, by default as recorded.
        sizes: of free axes, such as ``H=640``.
        batch_sizes: by default the ends of what artefact and server take, up to 8 for an ONNX file,
            and one between.
        device: where the artefact runs here.
        limit: number of pictures for each batch size.
        seed: of the noise.

    Raises:
        BadInput: there is no server at `url`, or the artefact cannot be fed so.
        MissingCapability: tritonclient is not installed, or the artefact cannot run here.
    """
    opened = open_artefact(artefact).sized(sizes)
    name = model_name or opened.path.stem
    if pictures and data is None:
        raise BadInput("--pictures sends pictures", "say which ones with --data")
    if preprocessing is not None and data is None:
        raise idle_preprocessing()
    source = opened.samples(data, preprocessing) if data else None
    stream = InputStream(opened.inputs, source, seed, limit, opened.image_size, opened.sizes)
    found = _Comparison(opened)
    with _clients(url, grpc) as clients, open_runtime(opened, device=device) as runner:
        serving = found.serving(clients, name)
        for batch in batch_sizes or _batches(opened, serving, name):
            for feeds in stream.batches(batch):
                reference = runner.infer(feeds)
                for client in serving:
                    found.compare(client, name, batch, feeds, reference)
        ensemble = f"{name}{PICTURES_SUFFIX}"
        serving = found.serving(clients, ensemble) if pictures else []
        for encoded, feeds in _encoded(opened, source, limit) if serving else ():
            reference = runner.infer(feeds)
            for client in serving:
                found.compare(client, ensemble, 1, encoded, reference)
    return ServerCheck(
        artefact=str(artefact),
        url=url,
        runtime=runner.name,
        precision=opened.precision,
        inputs=stream.label,
        outputs=found.outputs(),
        refusals=tuple(dict.fromkeys(found.refusals)),
    )


class Client:
    """A server by one of its protocols.

    Args:
        protocol: ``HTTP`` or ``gRPC``.
        address: host and port.

    Raises:
        BadInput: no server answers there.
        MissingCapability: tritonclient is not installed.
    """

    def __init__(self, protocol: str, address: str) -> None:
        with imports_for("asking a Triton server needs tritonclient", "triton"):
            self._module = importlib.import_module(PROTOCOLS[protocol])
        self.protocol, self._timeout = protocol, {}
        if protocol == "HTTP":
            times = {"connection_timeout": _SECONDS, "network_timeout": _SECONDS}
        else:
            times, self._timeout = {}, {"client_timeout": _SECONDS}
        self._client = self._module.InferenceServerClient(address, **times)
        try:
            live = self._client.is_server_live()
        except Exception as error:  # Each protocol has errors of its own for a closed port.
            raise _unreachable(protocol, address, in_one_line(error)) from error
        if not live:
            raise _unreachable(protocol, address, "it is not live")

    def close(self) -> None:
        """End the connection: a server that is to stop waits for that."""
        self._client.close()

    def serves(self, model: str) -> bool:
        """Whether the server has that model, ready to run."""
        return bool(self._client.is_model_ready(model))

    def largest_batch(self, model: str) -> int:
        """Largest batch that the server puts together for a model; 0 for none."""
        answer = self._client.get_model_config(model)
        by_http = isinstance(answer, dict)
        return int(answer["max_batch_size"] if by_http else answer.config.max_batch_size)

    def infer(self, model: str, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The server's `outputs` by name; raises `Refused`."""
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in feeds.items():
            given = self._module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            given.set_data_from_numpy(np.ascontiguousarray(array))
            inputs.append(given)
        wanted = [self._module.InferRequestedOutput(name) for name in outputs]
        try:
            answer = self._client.infer(model, inputs, outputs=wanted, **self._timeout)
        except Exception as error:  # Each protocol has errors of its own for a lost connection.
            raise Refused(in_one_line(error)) from error
        try:
            return {name: answer.as_numpy(name) for name in outputs}
        except ValueError as error:
            raise Refused(
                f"its answer lacks data ({error}): a Python backend built for NumPy 1 does that"
                " where the server has NumPy 2"
            ) from error


class Refused(Exception):
    """A request that the server did not answer; its text says why."""


class _Comparison:
    """Errors in the making, and what was refused."""

    def __init__(self, artefact: Artefact) -> None:
        self._tolerance = OUTPUTS[artefact.precision]
        self._errors: dict[tuple[str, str, int, str], ErrorAccumulator] = {}
        self._samples: dict[tuple[str, str, int, str], int] = {}
        self.refusals: list[str] = []

    def serving(self, clients: Sequence[Client], model: str) -> list[Client]:
        """Those by which the server has the model."""
        ready = [client for client in clients if client.serves(model)]
        self.refusals += [
            f"{client.protocol}: the server has no model {model} that is ready"
            for client in clients
            if client not in ready
        ]
        return ready

    def compare(
        self, client: Client, model: str, batch: int, feeds: Arrays, reference: Arrays
    ) -> None:
        """Send one batch by one protocol."""
        try:
            answers = client.infer(model, feeds, tuple(reference))
        except Refused as error:
            self.refusals.append(f"{client.protocol}, {model}, batch {batch}: {error}")
            return
        for output, expected in reference.items():
            got = answers[output]
            if got.shape != expected.shape:
                self.refusals.append(
                    f"{client.protocol}, {model}, batch {batch}: output {output} is"
                    f" {list(got.shape)}, not {list(expected.shape)}"
                )
                continue
            key = (client.protocol, model, batch, output)
            errors = self._errors.setdefault(
                key, ErrorAccumulator(output, self._tolerance.channels)
            )
            errors.add(expected, got)
            self._samples[key] = self._samples.get(key, 0) + batch

    def outputs(self) -> tuple[ServedOutput, ...]:
        """What was compared."""
        found = []
        for key, accumulator in self._errors.items():
            protocol, model, batch, _ = key
            error = accumulator.result()
            failures = check(error, self._tolerance)
            found.append(ServedOutput(protocol, model, batch, self._samples[key], error, failures))
        return tuple(found)


def _batches(artefact: Artefact, clients: Sequence[Client], model: str) -> tuple[int, ...]:
    """Batch sizes that exercise what both the artefact and the server take."""
    if not clients:
        return ()
    low, high = artefact.batch_range
    end = _LARGEST_BATCH if high is None else high
    served = clients[0].largest_batch(model) or end  # 0 where the batch is part of the shape.
    return default_batches(low, min(end, served), artefact.opt_batch)


@contextmanager
def _clients(url: str, grpc: str | None) -> Iterator[list[Client]]:
    host, port = _address(url, _HTTP_PORT)
    other, other_port = (host, port + 1) if grpc is None else _address(grpc, port + 1)
    addresses = {"HTTP": f"{host}:{port}", "gRPC": f"{other}:{other_port}"}
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(Client(protocol, address)))
            for protocol, address in addresses.items()
        ]


def _address(url: str, default: int) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(url)
    if found is None or int(found[2] or default) > 65535:
        raise BadInput(f"{url}: is no address of a server", "write it as localhost:8000")
    return found[1], int(found[2] or default)


def _unreachable(protocol: str, address: str, why: str) -> BadInput:
    return BadInput(
        f"{address}: no Triton server answers {protocol} there ({why})",
        "start it with the line that package prints, or say where its gRPC is with --grpc",
    )


def _encoded(artefact: Artefact, source: Any, limit: int) -> Iterator[tuple[Feeds, Feeds]]:
    """Each picture's file as the ensemble takes it, and as the network takes it."""
    for read in source.batches(1, limit=limit):
        path = Path(source.names[int(read.indices[0])])
        if source.ready or not path.is_file():
            raise BadInput(
                f"{source.name}: holds no files of pictures to send", "give a folder of pictures"
            )
        data = np.array([[path.read_bytes()]], object)
        fixed = isinstance(artefact.inputs[0].shape[0], int)
        yield (
            {PICTURES: data[0] if fixed else data},
            network_feeds(read.inputs, source, artefact.inputs),
        )
