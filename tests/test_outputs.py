"""Outputs are put in place whole or not at all."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.outputs import atomic_output, check_place, write_errors, write_text


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
        "from cbam_deploy.commands.outcome import run\n"
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


@pytest.mark.parametrize("earlier", ["earlier", None])
def test_the_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path, earlier):
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "model.onnx"
    if earlier is not None:
        real.write_text(earlier)
    (tmp_path / "hop").symlink_to("real/model.onnx")
    (tmp_path / "link").symlink_to(tmp_path / "hop")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "hop").is_symlink()
    assert real.read_text() == "new"
    assert names(real.parent) == ["model.onnx"]


def test_links_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "away").symlink_to("gone/file")
    for name in ("loop", "away"):
        with pytest.raises(BadInput, match=name):
            write_text(tmp_path / name, "x")


def test_a_pipe_is_written_into_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "content")
    reader.join()
    assert read == ["content"]
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]


@pytest.fixture
def device(tmp_path):
    """A device made here that swallows, like /dev/null; never the system's own."""
    path = tmp_path / "device"
    try:
        os.mknod(path, 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device needs root")
    return path


def test_a_device_is_written_into_and_stays(device):
    write_text(device, "content")
    assert device.is_char_device()
    assert names(device.parent) == ["device"]


def test_an_artefact_is_no_device_or_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="is a pipe, not a regular file"):
        check_place(tmp_path / "pipe", artefact=True)


def test_what_standard_output_goes_to_is_written_into(tmp_path):
    script = (
        "import sys\n"
        "from cbam_deploy.outputs import write_text\n"
        "print('before')\n"
        "write_text(sys.argv[1], 'report\\n')\n"
        "print('after')\n"
    )
    target = tmp_path / "shown"
    for place in ("/proc/self/fd/1", target):
        with target.open("w") as shown:
            subprocess.run([sys.executable, "-c", script, place], stdout=shown, check=True)
        assert target.read_text() == "before\nreport\nafter\n"


def abandoned(target):
    """What is left of an output when its writer is killed, made so."""
    script = (
        "import os, signal, sys\n"
        "from cbam_deploy.outputs import atomic_output\n"
        "with atomic_output(sys.argv[1]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, target], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_the_next_output_removes_what_a_killed_writer_left(tmp_path):
    target = tmp_path / "model.onnx"
    abandoned(target)
    assert len(names(tmp_path)) == 1
    (tmp_path / ".model-original.onnx").touch()
    write_text(target, "x")
    assert names(tmp_path) == [".model-original.onnx", "model.onnx"]


def test_the_file_of_a_living_writer_stays(tmp_path):
    target = tmp_path / "model.onnx"
    with atomic_output(target) as first:
        write_text(target, "second")
        first.write_text("first")
    assert target.read_text() == "first"


def test_the_longest_name_can_be_written_and_a_longer_one_is_refused(tmp_path):
    write_text(tmp_path / f"{'é' * 125}.onnx", "x")
    with pytest.raises(BadInput, match="cannot be written"):
        write_text(tmp_path / f"{'é' * 126}.onnx", "x")


def test_the_file_of_a_pair_that_could_not_be_written_is_named(tmp_path):
    def fail_at_the_first():
        first, second = tmp_path / "a", tmp_path / "b"
        with atomic_output(first), atomic_output(second), write_errors(first):
            raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match=f"^{tmp_path / 'a'}: no space left"):
        fail_at_the_first()
