"""ONNX Runtime collects nothing about the people who use the package."""

import os
import subprocess
import sys

SESSION = """
from cbam_deploy import open_runtime
import sys
with open_runtime(sys.argv[1]) as runtime:
    print(len(runtime.outputs))
"""


def test_a_session_leaves_nothing_in_home(tmp_path, model):
    environment = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key}
    environment.update(HOME=str(tmp_path / "home"), XDG_CACHE_HOME=str(tmp_path / "home/.cache"))
    environment["TMPDIR"] = environment["HOME"]
    (tmp_path / "home").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", SESSION, str(model)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "1\n"
    assert not list((tmp_path / "home").rglob("*"))
