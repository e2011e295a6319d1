"""The command line answers at once and says what is wrong in two lines."""

import json
import subprocess
import sys
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer

from cbam_deploy.cli import app
from cbam_deploy.commands.options import percentage
from cbam_deploy.errors import BadInput

HEAVY = (
    "torch", "onnx", "onnxruntime", "tensorrt_rtx", "polygraphy", "numpy", "sklearn", "rich",
)  # fmt: skip
COMMANDS = sorted(command.name or "" for command in app.registered_commands)


def modules_after(*arguments):
    """Names of the modules loaded once the command has ended, and its exit code."""
    script = (
        "import json, sys\n"
        "from cbam_deploy.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    code = ended.code\n"
        "sys.stderr.write('\\n' + json.dumps([code, sorted(sys.modules)]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(ended.stderr.splitlines()[-1])
    return code, set(modules)


def test_help_lists_every_command_and_loads_nothing_heavy():
    code, modules = modules_after("--help")
    assert code == 0
    assert not modules & set(HEAVY)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(cli, command):
    shown = cli(command, "--help")
    assert shown.code == 0
    assert shown.err == ""
    assert "Usage:" in shown.out


def test_no_arguments_show_the_help(cli):
    shown = cli().out
    assert all(f"  {command} " in shown for command in COMMANDS)


def test_version_is_the_package_version(cli):
    from cbam_deploy import __version__

    assert cli("--version").out == f"cbam-deploy {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["export"],
        ["export", "resnet18", "-o", "x.onnx", "--no-such-option"],
        ["export", "resnet18", "-o", "x.onnx", "--attention", "bam"],
        ["bench", "x.onnx", "--batch", "zero"],
        ["bench", "x.onnx", "--batch", "0"],
        ["bench", "x.onnx", "--max-slowdown", "much"],
        ["evaluate", "x.onnx", "--data", "digits", "--max-drop", "120%"],
        ["export", "resnet20", "-o", "x.onnx", "--gate", "kernel=3"],
        ["export", "resnet20", "-o", "x.onnx", "--gate", "kernel_size=4"],
        ["export", "resnet20", "-o", "x.onnx", "--precision", "int8"],
        ["export", "resnet20", "-o", "x.onnx", "--calibration", "digits"],
    ],
)
def test_bad_usage_is_two_lines_and_exit_2(cli, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli(*arguments)
    assert ended.code == 2
    assert ended.error
    assert ended.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "value"), [("5%", 0.05), ("0.05", 0.05), ("0%", 0.0), ("100%", 1.0)]
)
def test_percentages_are_read_with_and_without_sign(text, value):
    assert percentage(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "five", "-1%", "101%", "nan"])
def test_other_texts_are_no_percentages(text):
    with pytest.raises(BadInput):
        percentage(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["fuse", "convert", "inspect", "build-engine", "bench", "evaluate", "complexity"]
)
def test_commands_that_need_no_torch_do_not_load_it(command, digits_onnx, tmp_path):
    options = {
        "fuse": ["-o", tmp_path / "fused.onnx"],
        "convert": [
            *("-o", tmp_path / "int8.onnx", "--precision", "int8"),
            *("--calibration", "digits", "--images", "1"),
        ],
        "inspect": [],
        "build-engine": ["-o", tmp_path / "model.engine", "--target", "sm_89"],
        "bench": ["--seconds", "0.1", "--batch", "1"],
        "evaluate": ["--data", "digits", "--limit", "8"],
        "complexity": [],
    }
    code, modules = modules_after(command, digits_onnx, *options[command])
    assert code == 0
    assert "torch" not in modules


def test_json_is_all_that_stdout_gets(cli):
    shown = cli("doctor", "--json")
    assert shown.code == 0
    assert json.loads(shown.out)


def numeric_options():
    """Name, kind and typer's description of every option that takes a number."""
    for command in app.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if get_origin(hint) is Annotated:
                kind, info = get_args(hint)
                kinds = {kind, *get_args(kind), *(k for a in get_args(kind) for k in get_args(a))}
                for number in kinds & {int, float}:
                    yield f"{command.name} {name}", number, info


def test_every_number_has_bounds():
    checked = 0
    for name, kind, info in numeric_options():
        checked += 1
        if kind is int:
            assert info.min is not None, name
            assert info.max is not None, name
            assert abs(info.max) < 2**63, name
        else:
            assert info.parser is not None, name
            with pytest.raises((BadInput, typer.BadParameter)):
                info.parser("nan")
    assert checked > 40


@pytest.mark.parametrize(
    "line",
    [
        "bench x.onnx --seed -1",
        "convert x.onnx -o o.onnx --seed 4294967296",
        "bench x.onnx --batch 1000000000000",
        "bench x.onnx --threads 1000000000000",
        "bench x.onnx --seconds nan",
        "bench x.onnx --seconds inf",
        "bench x.onnx --seconds 1e400",
        f"bench x.onnx --batch {'9' * 5000}",
        "build-engine x.onnx -o o.engine --workspace 99999999999999999999",
        "build-engine x.onnx -o o.engine --max-batch 1000000000000",
        "export resnet20 -o o.onnx --num-classes 1000000000000",
        "export resnet20 -o o.onnx --image-size 1000000",
        f"export resnet20 -o o.onnx --gate reduction={'9' * 5000}",
        f"export resnet20 -o o.onnx --input image:1x3x{'9' * 5000}x8",
        "validate x.onnx --max-abs nan",
        "validate x.onnx --max-abs -1",
        "validate x.onnx --min-cosine 2",
        "train resnet20 --data digits -o r --lr nan",
        "train resnet20 --data digits -o r --momentum -0.1",
        "gradcam resnet20 --data digits --image-size 1000000",
        "ablation --seeds 99999999999",
    ],
)
def test_numbers_out_of_range_are_refused(cli, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    ended = cli(*line.split())
    assert ended.code == 2
    assert ended.error
    assert not list(tmp_path.iterdir())
