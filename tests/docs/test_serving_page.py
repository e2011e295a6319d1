"""The commands of docs/serving.md work as they stand; tests/serving has the server of the check."""

import re
import shlex
from pathlib import Path

import pytest

from cbam_deploy.serving.containers import SUPPORT_MATRIX, TENSORRT_OF

pytest.importorskip("tritonclient")
PAGE = Path(__file__).parents[2].joinpath("docs", "serving.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^cbam-deploy (.+)$", PAGE.replace("\\\n", ""), re.M)
LINES = [shlex.split(line) for line in COMMANDS]


def test_every_command_writes_what_the_page_says(network_onnx, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(network_onnx.read_bytes())
    Path("models").mkdir()
    for words in LINES:
        ended = cli(*(word.replace("224", "32") for word in words))
        if "--check" in words:
            assert (ended.code, "no Triton server answers" in ended.error) == (2, True)
        else:
            assert ended.code == 0, ended.err
    assert {"--triton", "--check", "--deepstream"} <= {word for words in LINES for word in words}
    assert Path("models/net/config.pbtxt").is_file()
    assert "network-type=1" in Path("ds/config_infer.txt").read_text().splitlines()


def test_the_months_and_the_matrix_are_those_of_the_code():
    assert SUPPORT_MATRIX in PAGE
    assert set(re.findall(r"--container (\d\d\.\d\d)", PAGE)) <= set(TENSORRT_OF)
