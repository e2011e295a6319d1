"""Outputs are put in place whole or not at all."""

import os
import subprocess
import sys

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.outputs import atomic_output, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_output_appears_only_when_the_block_succeeds(tmp_path):
    target = tmp_path / "model.onnx"
    with atomic_output(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.suffix == ".onnx"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_earlier_file_survives_a_failing_block(tmp_path, error):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")

    def write_and_fail():
        with atomic_output(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["model.onnx"]


def test_output_has_the_permissions_of_an_ordinary_new_file(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_text(tmp_path / "written", "x")
    assert (tmp_path / "written").stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("place", ["", "missing/model.onnx", "file/model.onnx"])
def test_impossible_places_are_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=str(tmp_path)):
        write_text(tmp_path / place, "x")
    assert names(tmp_path) == ["file"]


@pytest.fixture
def unprivileged():
    """Root may write anywhere, so it becomes somebody else for a moment."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_read_only_folder_is_refused(tmp_path, unprivileged):
    folder = tmp_path
    if os.getuid() != 0:
        folder.chmod(0o500)
    with pytest.raises(BadInput, match="cannot be written"):
        write_text(folder / "x", "x")


def test_pair_is_put_in_place_only_together(tmp_path):
    def write_first_and_fail():
        with atomic_output(tmp_path / "a") as first, atomic_output(tmp_path / "b") as second:
            first.write_text("a")
            second.write_text("b")
            raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="no space left"):
        write_first_and_fail()
    assert names(tmp_path) == []


def test_sigterm_removes_the_temporary_file(tmp_path):
    script = (
        "import sys, os, signal\n"
        "from cbam_deploy.exits import run\n"
        "from cbam_deploy.outputs import atomic_output\n"
        "def command():\n"
        "    with atomic_output(sys.argv[1]) as temporary:\n"
        "        temporary.write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "run(command)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False)
    assert ended.returncode == 143
    assert names(tmp_path) == []
