"""Triton Inference Server from PyTriton's wheel, started on this machine for tests and figures.

The wheel has the server (24.10) and, of its backends, the one for Python. It lies in an environment
of its own, since that backend is built for NumPy 1: with NumPy 2 it answers without data. `INSTALL`
makes that environment, ``.venv/tritonserver``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTALL = "make .venv/tritonserver.done"
_SECONDS = 60


@dataclass(frozen=True)
class InstalledServer:
    """Where the server lies.

    Attributes:
        environment: of Python, which the Python backend uses.
        packages: its packages.
    """

    environment: Path
    packages: Path

    @property
    def binary(self) -> Path:
        """The server itself."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    def backends(self, folder: Path) -> Path:
        """A folder with the Python backend and the stub for the environment's Python."""
        files = self.packages / "pytriton" / "tritonserver"
        backend = folder / "python"
        shutil.copytree(files / "backends" / "python", backend)
        version = self.packages.parent.name.removeprefix("python")
        shutil.copy(
            files / "python_backend_stubs" / version / "triton_python_backend_stub", backend
        )
        return folder


def find_server() -> InstalledServer | None:
    """The server in the environment beside this Python's, or the one that TRITON_SERVER names."""
    environment = Path(os.environ.get("TRITON_SERVER", Path(sys.prefix, "tritonserver")))
    for packages in environment.glob("lib/python3*/site-packages"):
        server = InstalledServer(environment, packages)
        if server.binary.is_file():
            return server
    return None


@dataclass
class RunningServer:
    """A server that answers.

    Attributes:
        process: the server.
        http: host and port.
        grpc: host and port.
        log: what it has written.
    """

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    log: Path

    def stop(self) -> int:
        """Ask it to end once what it has accepted is answered; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_SECONDS)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def serving(
    server: InstalledServer,
    repository: Path,
    scratch: Path,
    *options: str,
    ports: tuple[int, int] | None = None,
    ready: bool = True,
) -> Iterator[RunningServer]:
    """Run the server on a model repository; it is stopped in the end.

    Args:
        server: which one.
        repository: of models.
        scratch: folder for its log and backends.
        options: of its command line, besides.
        ports: of HTTP and gRPC; free ones by default.
        ready: whether to wait until all models are ready, not only until it answers.
    """
    http, grpc = ports or free_ports(2)
    backends = scratch / "backends"
    if not backends.is_dir():
        server.backends(backends)
    command = [
        str(server.binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1"),
        *(f"--http-port={http}", f"--grpc-port={grpc}"),
        "--allow-metrics=false",
        *options,
    ]
    environment = {
        **os.environ,
        "PATH": f"{server.environment / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(server.packages / "nvidia_pytriton.libs"),
        "OMP_NUM_THREADS": "1",
    }
    log = scratch / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    running = RunningServer(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log)
    try:
        _wait(running, "ready" if ready else "live")
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(running: RunningServer, question: str) -> bool:
    """Whether it says that it is ``live``, or ``ready`` for requests."""
    try:
        with urllib.request.urlopen(f"http://{running.http}/v2/health/{question}", timeout=5):
            return True
    except OSError:  # An answer that says no is one too.
        return False


def _wait(running: RunningServer, for_what: str) -> None:
    begin = time.monotonic()
    while time.monotonic() < begin + _SECONDS:
        if running.process.poll() is not None:
            break
        if answers(running, for_what):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server is not {for_what}:\n{running.log.read_text(errors='replace')}")
