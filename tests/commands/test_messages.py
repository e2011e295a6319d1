"""Beside its result, a command says no more and no less than it was asked to."""

import json
import logging
import sys
import warnings

import pytest

from cbam_deploy.progress import progress

LIBRARY = logging.getLogger("library.part")
OURS = logging.getLogger("cbam_deploy.part")


class Talkative:
    def __rich__(self):
        return "done"

    def to_json(self):
        return {"shows_progress": self.shows_progress}

    def __init__(self):
        warnings.warn("old\x1b call", UserWarning, stacklevel=1)
        LIBRARY.warning("slow path")
        LIBRARY.info("detail")
        OURS.info("step")
        OURS.warning("mind this")
        with progress() as bar:
            self.shows_progress = not bar.disable


@pytest.fixture
def talk(cli, monkeypatch):
    """Run ``doctor`` with a result that has much to say, on a terminal."""
    monkeypatch.setattr("cbam_deploy.doctor", lambda **_: Talkative(), raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    before = OURS.parent.level, warnings.showwarning
    yield lambda line: cli(*line.split())
    assert (OURS.parent.level, warnings.showwarning) == before


def lines(text):
    return [line for line in text.splitlines() if line and not line.startswith("\x1b")]


@pytest.mark.parametrize("line", ["--quiet doctor", "doctor --quiet", "--quiet doctor --quiet"])
def test_quiet_leaves_the_result_alone(talk, line):
    shown = talk(line)
    assert (shown.code, shown.out, shown.err) == (0, "done\n", "")


@pytest.mark.parametrize("line", ["--verbose doctor", "doctor --verbose"])
def test_verbose_adds_our_notes_and_what_libraries_warn_of(talk, line):
    shown = talk(line)
    assert shown.out == "done\n"
    assert lines(shown.err) == [
        "warning: warnings: UserWarning: old\\x1b call",
        "warning: library.part: slow path",
        "info: step",
        "warning: mind this",
    ]


def test_by_default_there_are_our_warnings_alone(talk):
    assert lines(talk("doctor").err) == ["warning: mind this"]


@pytest.mark.parametrize(("option", "shows"), [("--quiet", False), ("--debug", True)])
def test_quiet_shows_no_progress(talk, monkeypatch, option, shows):
    monkeypatch.setenv("CBAM_DEPLOY_DEBUG", "")
    assert json.loads(talk(f"doctor --json {option}").out) == {"shows_progress": shows}


@pytest.mark.parametrize("line", ["--quiet doctor --verbose", "doctor --verbose --quiet"])
def test_quiet_and_verbose_exclude_each_other(talk, line):
    shown = talk(line)
    assert shown.code == 2
    assert shown.error == "--quiet and --verbose exclude each other"


@pytest.mark.parametrize("line", ["--quiet inspect gone.onnx", "inspect gone.onnx --quiet"])
def test_errors_are_said_even_so(cli, line):
    shown = cli(*line.split())
    assert (shown.code, shown.out) == (2, "")
    assert "gone.onnx" in shown.error


def test_tracebacks_are_shown_by_debug_before_and_after_the_command(cli, monkeypatch):
    from cbam_deploy.cli import main
    from cbam_deploy.errors import BadInput

    monkeypatch.setenv("CBAM_DEPLOY_DEBUG", "")
    for line in (["--debug", "inspect", "gone.onnx"], ["inspect", "gone.onnx", "--debug"]):
        monkeypatch.setenv("CBAM_DEPLOY_DEBUG", "")
        monkeypatch.setattr(sys, "argv", ["cbam-deploy", *line])
        with pytest.raises(BadInput, match=r"gone\.onnx"):
            main()


def test_verbose_names_the_files_read_and_written(cli, tmp_path):
    (tmp_path / "in.onnx").write_bytes(b"no model")
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    said = cli("fuse", source, "-o", output, "--verbose").err.splitlines()
    assert f"info: IN.onnx: reads {source}" in said
    assert f"info: --output: writes {output}" in said


def test_a_wrong_choice_is_answered_in_the_words_of_a_person(cli):
    ended = cli("build-plugin", "--arch", "riscv64")
    assert ended.code == 2
    assert "'--arch': 'riscv64' is not one of 'x86_64', 'aarch64'." in " ".join(ended.err.split())
    assert "Value error" not in ended.err
