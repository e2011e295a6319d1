"""A run does what its file says, and nothing again that nothing has changed for."""

import json
import os
from pathlib import Path

import onnx
import pytest

from cbam_deploy.cli import app
from cbam_deploy.pipeline import run as running
from cbam_deploy.pipeline.run_file import OWN_KEYS, read_run_file

STEPS = """
[[step]]
command = "convert in.onnx"
output = "made/half.onnx"

[[step]]
command = "inspect made/half.onnx"
report = "made/half.json"

[[step]]
command = "inspect in.onnx"
report = "made/in.json"
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run file, and the network of one convolution that its steps begin with."""
    value = onnx.helper.make_tensor_value_info
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1, 1, 1, 1], [0.5])
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    shape = [1, 1, 2, 2]
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", 1, shape)], [value("y", 1, shape)], [weight]
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), tmp_path / "in.onnx")
    (tmp_path / "deploy.toml").write_text(STEPS)
    return tmp_path


@pytest.fixture
def states(cli, folder):
    """Run the file; the state of each step."""

    def run(*options: str) -> list[str]:
        shown = cli("run", folder / "deploy.toml", "--json", *options)
        assert shown.code == 0, shown.err
        return [step["state"] for step in json.loads(shown.out)["steps"]]

    return run


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_second_run_does_nothing(states, folder):
    assert states() == ["done"] * 3
    before = {path: path.stat().st_mtime_ns for path in (folder / "made").iterdir()}
    assert states() == ["unchanged"] * 3
    assert {path: path.stat().st_mtime_ns for path in (folder / "made").iterdir()} == before
    assert states("--force") == ["done"] * 3


def test_a_changed_option_runs_its_step_and_those_that_read_what_it_wrote(states, folder):
    states()
    changed(
        folder / "deploy.toml",
        'output = "made/half.onnx"',
        'output = "made/half.onnx"\nio-dtype = "fp16"',
    )
    assert states("--dry-run") == ["would run", "may run", "unchanged"]
    assert states() == ["done", "done", "unchanged"]


def test_what_comes_out_as_before_runs_nothing_after_it(states, folder):
    states()
    changed(
        folder / "deploy.toml", 'output = "made/half.onnx"', 'output = "made/half.onnx"\nseed = 1'
    )
    assert states() == ["done", "unchanged", "unchanged"]


def test_an_input_counts_by_its_bytes_and_not_by_its_time(states, folder):
    states()
    content = (folder / "in.onnx").read_bytes()
    (folder / "in.onnx").write_bytes(content)
    os.utime(folder / "in.onnx", (0, 0))
    assert states() == ["unchanged"] * 3
    model = onnx.load(folder / "in.onnx")
    model.producer_name = "other"
    onnx.save(model, folder / "in.onnx")
    found = states()
    assert (found[0], found[2]) == ("done", "done")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{}")])
def test_an_output_that_is_gone_or_altered_is_made_again(states, folder, spoil):
    states()
    spoil(folder / "made" / "in.json")
    assert states() == ["unchanged", "unchanged", "done"]


def test_another_version_of_a_package_runs_everything(states, monkeypatch):
    states()
    found = {**running.versions(), "torch": "0.1"}
    monkeypatch.setattr(running, "versions", lambda: found)
    assert states() == ["done"] * 3


def test_what_a_step_says_it_reads_counts(states, folder):
    data = folder / "layers"
    data.mkdir()
    (data / "gate.py").write_text("a")
    changed(
        folder / "deploy.toml",
        'report = "made/in.json"',
        'report = "made/in.json"\nreads = ["layers"]',
    )
    states()
    (data / ".hidden").write_text("")
    assert states() == ["unchanged"] * 3
    (data / "gate.py").write_text("b")
    assert states() == ["unchanged", "unchanged", "done"]


def test_what_a_step_says_it_reads_has_to_be_there(cli, folder):
    (folder / "deploy.toml").write_text("[[step]]\ncommand = 'inspect in.onnx'\nreads = 'net.py'")
    shown = cli("run", folder / "deploy.toml", "--quiet")
    assert shown.code == 2
    assert "step inspect: reads names net.py" in shown.error


def test_a_file_replaced_in_place_is_made_once_and_again_after_what_it_is_made_from(states, folder):
    text = '[[step]]\ncommand = "inline in.onnx"\noutput = "a.onnx"\n'
    text += '[[step]]\ncommand = "fuse a.onnx"\noutput = "a.onnx"\n'
    (folder / "deploy.toml").write_text(text)
    assert states() == ["done"] * 2
    assert states() == ["unchanged"] * 2
    changed(folder / "deploy.toml", 'command = "inline in.onnx"', 'command = "convert in.onnx"')
    assert states() == ["done"] * 2


def test_a_dry_run_writes_nothing_and_says_why(cli, folder):
    shown = cli("run", folder / "deploy.toml", "--dry-run")
    assert shown.code == 0
    assert "has not run yet" in shown.out
    assert sorted(path.name for path in folder.iterdir()) == ["deploy.toml", "in.onnx"]


def test_a_check_that_does_not_hold_ends_the_run_with_its_code(cli, folder):
    text = '[[step]]\ncommand = "validate made/half.onnx"\nreference = "in.onnx"\nmax-abs = 0\n'
    text += 'name = "parity"\nsize = []\n'
    first, rest = STEPS.split('[[step]]\ncommand = "inspect made', 1)
    (folder / "deploy.toml").write_text(f'{first}{text}[[step]]\ncommand = "inspect made{rest}')
    shown = cli("run", folder / "deploy.toml", "--json", "--summary", folder / "s.md")
    assert shown.code == 1
    assert "error: step parity: " in shown.err
    states = [step["state"] for step in json.loads(shown.out)["steps"]]
    assert states == ["done", "failed", "not reached", "not reached"]
    summary = (folder / "s.md").read_text()
    assert "## Steps" in summary
    assert ": failed" in summary
    changed(folder / "deploy.toml", "max-abs = 0", "max-abs = 1")
    shown = cli("run", folder / "deploy.toml", "--json")
    states = [step["state"] for step in json.loads(shown.out)["steps"]]
    assert states == ["unchanged", "done", "done", "done"]


def test_an_interrupted_run_goes_on_where_it_was(cli, states, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cbam_deploy.inspect", interrupt, raising=False)
        assert cli("run", folder / "deploy.toml").code == 130
    assert states() == ["unchanged", "done", "done"]


def test_the_summary_has_the_results_of_steps_that_had_not_to_run(cli, folder):
    cli("run", folder / "deploy.toml")
    cli("run", folder / "deploy.toml", "--summary", folder / "s.md")
    summary = (folder / "s.md").read_text()
    assert "unchanged" in summary
    assert "fp16" in summary


def test_paths_begin_in_the_folder_of_the_file(cli, folder, monkeypatch):
    monkeypatch.chdir("/")
    shown = cli("run", folder / "deploy.toml", "--report", folder / "r.json")
    assert shown.code == 0
    assert (folder / "made" / "half.onnx").is_file()
    assert Path.cwd() == Path("/")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no table"),
        ("[[step]]\ncommand = 'inspect in.onnx'\nreport = 'in.onnx/a.json'", "in.onnx does not"),
        ("step = []", "has no step"),
        ("step = 1", "step is no list of tables"),
        ("steps = []", "'steps' is no step"),
        ("[[step]]\noutput = 'a'", "step 1 has no command"),
        ("[[step]]\ncommand = 'run x'", "no command 'run'"),
        ("[[step]]\ncommand = 'inspect in.onnx'\njson = true", "--json is for the whole run"),
        ("[[step]]\ncommand = 'inspect in.onnx'\nhtm = 'a'", "step inspect: No such option"),
        ("[[step]]\ncommand = 'inspect in.onnx'\ntarget = false", "step inspect: No such option"),
        ("[[step]]\ncommand = 'inspect'", "step inspect: Missing argument"),
        ("[[step]]\ncommand = 'inspect in.onnx'\nhtml = {a = 1}", "html is a dict"),
        (
            "[[step]]\ncommand = 'inspect in.onnx'\n[[step]]\ncommand = 'bench in.onnx'\nbatch = 0",
            "step bench: Invalid value for '--batch'",
        ),
        (
            "[[step]]\ncommand = 'inspect in.onnx'\nname = 'a'\n"
            "[[step]]\ncommand = 'inspect in.onnx'\nname = 'a'",
            "another step is called 'a'",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_said_before_anything_runs(cli, folder, text, said):
    (folder / "deploy.toml").write_text(text)
    shown = cli("run", folder / "deploy.toml")
    assert shown.code == 2
    assert said in shown.error
    assert sorted(path.name for path in folder.iterdir()) == ["deploy.toml", "in.onnx"]


def test_a_state_that_cannot_be_read_only_means_that_everything_runs(cli, states, folder):
    states()
    (folder / "deploy.state.json").write_text("{")
    shown = cli("run", folder / "deploy.toml", "--json")
    assert "warning: deploy.state.json: cannot be used" in shown.err
    assert [step["state"] for step in json.loads(shown.out)["steps"]] == ["done"] * 3


def test_what_is_known_of_the_steps_is_replaced_by_no_page(cli, states, folder):
    states()
    shown = cli("run", folder / "deploy.toml", "--html", folder / "deploy.state.json")
    assert (shown.code, "would both write it" in shown.error) == (2, True)
    assert states() == ["unchanged"] * 3


def test_a_flag_is_true_or_false(cli, folder, monkeypatch):
    given: list[object] = []
    keep = lambda *_, **options: given.append(options["embed_plugin"])  # noqa: E731
    monkeypatch.setattr("cbam_deploy.build_engine", keep, raising=False)
    for value in ("true", "false"):
        text = "[[step]]\ncommand = 'build-engine in.onnx'\noutput = 'e.engine'\n"
        (folder / "deploy.toml").write_text(f"{text}embed-plugin = {value}")
        assert cli("run", folder / "deploy.toml").code == 0
    assert given == [True, False]


def test_what_a_step_writes_into_a_folder_that_it_reads_is_no_input(states, folder):
    (folder / "deploy.toml").write_text(
        "[[step]]\ncommand = 'inspect in.onnx'\nreads = ['.']\nreport = 'here.json'\n"
        "[[step]]\ncommand = 'inspect in.onnx'\nreport = 'below/there.json'\n"
    )
    assert states() == ["done", "done"]
    assert states() == ["unchanged", "unchanged"]
    (folder / "else.txt").write_text("new")
    assert states() == ["done", "unchanged"]


def test_a_folder_that_a_step_wrote_counts_as_a_whole(states, folder):
    (folder / "deploy.toml").write_text(
        "[[step]]\ncommand = 'package in.onnx'\ntriton = 'made'\nmodel-name = 'a'\n"
        "[[step]]\ncommand = 'package in.onnx'\ntriton = 'made'\nmodel-name = 'b'\n"
        "report = 'made/b.json'\n"
    )
    assert states() == ["done", "done"]
    assert states() == ["unchanged", "unchanged"]
    (folder / "made" / "a" / "config.pbtxt").unlink()
    assert states() == ["done", "unchanged"]
    assert (folder / "made" / "a" / "config.pbtxt").is_file()
    assert states() == ["unchanged", "unchanged"]


def test_a_dry_run_knows_what_lies_in_a_folder_that_is_made_again(cli, folder):
    (folder / "deploy.toml").write_text(
        "[[step]]\ncommand = 'package in.onnx'\ntriton = 'made'\n"
        "[[step]]\ncommand = 'inspect made/in/1/model.onnx'\n"
    )
    assert cli("run", folder / "deploy.toml").code == 0
    (folder / "made" / "in" / "config.pbtxt").unlink()
    shown = json.loads(cli("run", folder / "deploy.toml", "--dry-run", "--json").out)["steps"]
    assert [step["state"] for step in shown] == ["would run", "may run"]


def test_every_command_but_run_can_be_a_step(cli, folder):
    (folder / "deploy.toml").write_text("[[step]]\ncommand = 'nothing'")
    named = cli("run", folder / "deploy.toml").err.partition("one of ")[2].strip().split(", ")
    assert sorted([*named, "run"]) == sorted(
        str(command.name) for command in app.registered_commands
    )


def test_no_command_has_an_option_that_the_file_takes_for_itself(cli):
    for command in app.registered_commands:
        shown = cli(command.name, "--help").out
        assert not [key for key in OWN_KEYS if f"  --{key} " in shown]


def test_the_example_is_a_run_that_its_commands_take(cli):
    example = Path(__file__).parents[2] / "examples" / "deploy.toml"
    steps = read_run_file(example)
    shown = cli("run", example, "--dry-run", "--json")
    assert shown.code == 0
    assert [step["name"] for step in json.loads(shown.out)["steps"]] == [s.name for s in steps]
