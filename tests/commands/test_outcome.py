"""However a command ends, it ends quietly and with the code of its kind."""

import logging
import os
import signal
import subprocess
import sys
import warnings

import pytest

MODULE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    import json.decoder
except BaseException:
    pass
class AtItsEnd:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass
"""
IMPORTING = """
import sys
from cbam_deploy.commands.outcome import run
from cbam_deploy.outputs import atomic_output
def command():
    with atomic_output("out"):
        import swallowing
        print("went on")
run(command)
"""
COLLECTING = """
import time
from cbam_deploy.commands.outcome import run
class Collected:
    def __del__(self):
        import os, signal
        signal.raise_signal(signal.SIGINT)
def command():
    Collected()
    time.sleep(5)
    print("went on")
run(command)
"""
LATE = """
import os, signal, sys
from cbam_deploy.commands.outcome import run
class AtTheEnd:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
sys.kept = AtTheEnd()
run(lambda: None)
"""


def ended(script, folder):
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", [IMPORTING, COLLECTING])
def test_an_interrupt_that_others_swallow_still_ends_the_command(script, tmp_path):
    (tmp_path / "swallowing.py").write_text(MODULE)
    done = ended(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ""] in ([], ["__pycache__"])
    assert not list(tmp_path.glob(".*"))


def test_an_interrupt_after_the_work_changes_nothing(tmp_path):
    done = ended(LATE, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_is_quiet_before_the_command_line_is_imported(tmp_path):
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from cbam_deploy.__main__ import main\n"
        "main()\n"
    )
    done = ended(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.fixture
def command(cli, monkeypatch):
    """Run ``doctor`` with a function in its place."""

    def run(function):
        monkeypatch.setattr("cbam_deploy.doctor", lambda **_: function(), raising=False)
        return cli("doctor")

    return run


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_too_little_memory_is_what_the_machine_lacks(command, error):
    def fail():
        raise error

    shown = command(fail)
    assert shown.code == 3
    assert "memory" in shown.error


def test_any_other_error_is_a_defect_and_shows_itself(cli, monkeypatch):
    from cbam_deploy.cli import main

    def fail():
        raise RuntimeError("defect")

    monkeypatch.setattr("cbam_deploy.doctor", lambda **_: fail(), raising=False)
    monkeypatch.setattr(sys, "argv", ["cbam-deploy", "doctor"])
    before = signal.getsignal(signal.SIGINT), sys.stdout, warnings.showwarning
    with pytest.raises(RuntimeError, match="defect"):
        main()
    signal.signal(signal.SIGINT, before[0])
    assert (sys.stdout, warnings.showwarning) == before[1:]


def test_warnings_and_logs_of_other_libraries_stay_off_the_terminal(command):
    class Nothing:
        def __rich__(self):
            return "done"

    def talk():
        warnings.warn("Glyph 27169 missing", UserWarning, stacklevel=1)
        logging.warning("Please consider pre-processing")
        logging.getLogger("other").error("other")
        logging.getLogger("cbam_deploy.engines").warning("ours, in\nbrief\x1b")
        return Nothing()

    shown = command(talk)
    assert shown.out == "done\n"
    assert shown.err == "warning: ours, in brief\\x1b\n"
    assert os.environ.get("CBAM_DEPLOY_DEBUG") is None
