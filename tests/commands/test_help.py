"""The help of each command: plain words, an example that it takes, a page that is there."""

import re
import shlex
from pathlib import Path

import pytest

import cbam_deploy
from cbam_deploy.cli import app
from cbam_deploy.numerics.tolerances import OUTPUTS

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = {command.name: command for command in app.registered_commands}
ENDING = re.compile(r"\n\nExample:\n((?:  .+\n)+)More: docs/([\w-]+)\.md\n$")
HOW = (
    "end the docstring of {}'s function in cbam_deploy/commands with"
    "\n\n    Example:\n      cbam-deploy {} ...\n    More: docs/PAGE.md"
)


@pytest.fixture
def help_of(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda command: cli(command, "--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_no_type_of_python_shows(help_of, command):
    leaks = re.findall(r"<\w[^>]*>|\w*\[\w*(?:Path|str|int)\w*\]|\w+<=x|\{\S+\}", help_of(command))
    assert not leaks, (
        f"the help of {command} shows {leaks}: give that option a metavar, such as"
        " option(..., metavar='NAME'), or take it from cbam_deploy/commands/options.py"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_says_its_default_once_and_pictures_are_called_pictures(help_of, command):
    shown = help_of(command)
    for one in re.split(r"\n  (?=-)", shown):
        assert one.count("[default:") <= 1, one
    assert not re.findall(r"(?<![-\w])[Ii]mages?\b(?!:)", shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_ends_with_an_example_and_a_page(help_of, command):
    ending = ENDING.search(help_of(command))
    assert ending, HOW.format(command, command)
    page = f"{ending[2]}.md"
    assert (DOCS / page).exists(), f"the help of {command} names docs/{page}, which is not there"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_is_a_line_that_the_command_takes(cli, help_of, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    called = []
    for name in dir(cbam_deploy):
        monkeypatch.setattr(cbam_deploy, name, lambda *_, **__: called.append(True), raising=False)
    ending = ENDING.search(help_of(command))
    assert ending, HOW.format(command, command)
    words = shlex.split(ending[1].replace("\\\n", " "))
    assert words[:2] == ["cbam-deploy", command]
    ended = cli(*words[1:])
    assert (ended.code, ended.err) == (0, "")
    assert called == [True]


def test_the_limits_of_validate_are_the_tolerances(help_of):
    shown = " ".join(help_of("validate").split())
    flags = {"max_relative", "min_cosine", "min_snr_db", "min_channel_snr_db"}
    for name in flags:
        (said,) = re.findall(rf"--{name.replace('_', '-')} .*?\[default: (.*?)\]", shown)
        bounds = {kind: getattr(tolerance, name) for kind, tolerance in OUTPUTS.items()}
        known = {kind: bound for kind, bound in bounds.items() if bound is not None}
        assert {kind: float(number) for kind, number in map(str.split, said.split(", "))} == known
    assert all(tolerance.max_abs is tolerance.min_top1 is None for tolerance in OUTPUTS.values())
