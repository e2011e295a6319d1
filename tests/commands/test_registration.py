"""Every command reads its line, calls one function and delivers what it returns, in one way."""

import inspect
import json

import onnx
import pytest

import cbam_deploy
from cbam_deploy.cli import app
from cbam_deploy.gates.description import GateSpec

COMMANDS = sorted(command.name or "" for command in app.registered_commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_as_asked(cli, command):
    shown = cli(command, "--help").out
    for option in (
        "--report",
        "--html",
        "--summary",
        "--json",
        "--quiet",
        "--verbose",
        "--debug",
        "-h, --help",
    ):
        assert f"\n  {option} " in shown


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_fits_eighty_columns_in_plain_text(cli, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = cli(*command, "--help").out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.isascii()
    assert "\x1b" not in shown


def test_options_of_long_commands_are_listed_under_headings(cli):
    shown = cli("train", "--help").out
    headings = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[:2] == ["Arguments:", "Options:"]
    assert {"Data:", "Model:", "Recipe:", "Where it runs:"} <= set(headings)
    model = shown[shown.index("Model:") : shown.index("Recipe:")]
    assert "--attention" in model
    assert "--lr" not in model


def test_commands_are_listed_under_what_one_wants(cli):
    shown = cli("--help").out
    for heading, command in (("Make", "export"), ("Check", "validate"), ("Study", "gradcam")):
        assert f"  {command} " in shown.split(f"\n{heading}:\n")[1].split("\n\n")[0]


class Result:
    def to_json(self):
        return {"schema": "cbam_deploy.result", "schema_version": 1}

    def __rich__(self):
        return "as a table"


def test_report_and_json_are_the_result_of_any_command(cli, monkeypatch, tmp_path):
    monkeypatch.setattr("cbam_deploy.demo", lambda *_, **__: Result(), raising=False)
    line = ("demo", "-o", tmp_path / "demo", "--report", tmp_path / "r.json")
    assert cli(*line).out == "as a table\n"
    shown = cli(*line, "--json")
    assert json.loads(shown.out) == Result().to_json()
    assert (tmp_path / "r.json").read_text() == shown.out


def test_a_command_without_a_result_says_nothing(cli, monkeypatch, tmp_path):
    """As ``train`` in a process that does not lead."""
    monkeypatch.setattr("cbam_deploy.train", lambda *_, **__: Result(), raising=False)
    monkeypatch.setattr("cbam_deploy.training.processes.leads", lambda: False)
    report = tmp_path / "r.json"
    shown = cli("train", "resnet20", "--data", "digits", "-o", tmp_path / "run", "--report", report)
    assert (shown.code, shown.out, shown.err) == (0, "", "")
    assert not report.exists()


def test_each_option_reaches_the_function(cli, monkeypatch, tmp_path):
    given: dict[str, object] = {}

    def ablation(*arguments, **options):
        given.update(options, output=arguments[0])
        return Result()

    monkeypatch.setattr("cbam_deploy.ablation", ablation, raising=False)
    folder = tmp_path / "study"
    assert cli("ablation", "-o", folder, "--variant", "se", "--seeds", 3).code == 0
    assert given == {
        "output": folder, "data": "digits", "model": "resnet20", "variants": ["se"],
        "epochs": None, "seeds": 3, "image_size": None, "batch_size": None, "seconds": 1.0,
        "device": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "export resnet20 -o {}/a.onnx",
        "convert {}/in.onnx -o {}/a.onnx",
        "build-engine {}/in.onnx -o {}/a.engine",
        "train resnet20 --data digits -o {}/run",
        "complexity resnet20",
        "validate {}/in.onnx",
        "evaluate {}/in.onnx --data digits",
        "bench {}/in.onnx",
    ],
)
def test_what_a_line_leaves_out_is_the_functions_default(cli, monkeypatch, tmp_path, line):
    command, *words = line.replace("{}", str(tmp_path)).split()
    name = {"export": "export_onnx"}.get(command, command.replace("-", "_"))
    known = inspect.signature(getattr(cbam_deploy, name)).parameters
    given = {}
    monkeypatch.setattr(f"cbam_deploy.{name}", lambda *_, **options: given.update(options))
    assert cli(command, *words).code == 0
    asked = {"data": "digits", "output": tmp_path / "run"}
    left_out = {name: value for name, value in given.items() if (name, value) not in asked.items()}
    assert len(left_out) > 5
    assert left_out == {name: known[name].default for name in left_out}


def test_options_of_a_group_reach_the_function(cli, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr("cbam_deploy.train", lambda *_, **options: given.update(options))
    line = ("train", "resnet20", "--data", "digits", "-o", tmp_path, "--stem", "cifar")
    assert cli(*line, "--gate", "kernel_size=3", "--lr", "0.5", "--amp", "bf16").code == 0
    chosen = {name: given[name] for name in ("stem", "gate", "lr", "amp", "momentum")}
    assert chosen == {
        "stem": "cifar", "gate": GateSpec(kernel_size=3), "lr": 0.5, "amp": "bf16", "momentum": 0.9,
    }  # fmt: skip


def test_what_fuse_and_doctor_say_names_its_schema(cli, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    for command, name in (
        (("fuse", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx"), "fusion"),
        (("doctor",), "machine"),
    ):
        data = json.loads(cli(*command, "--json").out)
        assert (data["schema"], data["schema_version"]) == (f"cbam_deploy.{name}", 1)


def test_the_demo_names_its_schema_beside_those_of_its_steps():
    from cbam_deploy.studies.demonstration import DemoResult

    data = DemoResult("report.html", 1.0, *[Result()] * 7).to_json()
    assert (data["schema"], data["schema_version"]) == ("cbam_deploy.demo", 1)
    assert data["bench"] == Result().to_json()


def test_an_error_allowed_by_export_is_a_number(cli, tmp_path):
    for text in ("nan", "-1", "much"):
        shown = cli("export", "resnet20", "-o", tmp_path / "x.onnx", "--tolerance", text)
        assert shown.code == 2
        assert "--tolerance" in shown.error
