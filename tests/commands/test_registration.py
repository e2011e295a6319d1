"""Every command reads its line, calls one function and delivers what it returns, in one way."""

import json

import onnx
import pytest

from cbam_deploy.cli import app

COMMANDS = sorted(command.name for command in app.registered_commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_as_asked(cli, command):
    shown = cli(command, "--help").out
    for option in ("--report", "--json", "--quiet", "--verbose", "--debug", "-h, --help"):
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
    given = {}

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
