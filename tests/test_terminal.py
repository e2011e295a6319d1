"""Text of files means itself on the terminal, and no stream that breaks ends a command."""

import os
import subprocess
import sys

import pytest
from rich.console import Console

from cbam_deploy import terminal
from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.terminal import Shown
from cbam_deploy.terminal import lasting_streams, visible

HOSTILE = ["[bold]cat", "[/x]", "dog\\", "\\[red]", ":smile:", "[link=x]y[/link]", "a[0]"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_never_markup(text, capsys):
    section = Section(
        text,
        text,
        tables=(Table((text,), ((text,),), caption=text), Table.facts([(text, text)])),
        failures=(text,),
        notes=(text,),
    )
    for console in (terminal.console(), Console()):
        console.print(Shown([section], page=text))
        assert capsys.readouterr().out.count(text) == 10
    terminal.show(text)
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("\x9b2J", "\\x9b2J"),
        ("\r\x08\x07", "\\r\\x08\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("größe 模型\n\t", "größe 模型\n\t"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert visible(text) == shown


def test_no_control_sequence_of_a_name_reaches_the_terminal(capsys):
    from rich.text import Text

    terminal.show(Text("\x1b]0;title\x07"))
    terminal.show(Shown([Section("\x1b[2J", tables=(Table.facts([("\x1b[1m", "\x1b")]),))]))
    assert "\x1b" not in capsys.readouterr().out


def test_control_sequences_in_an_error_are_written_out(cli):
    ended = cli("inspect", "no\x1b[2J[/x].onnx")
    assert ended.code == 2
    assert "no\\x1b[2J[/x].onnx: " in ended.error


COMMANDS = {
    0: "from cbam_deploy.commands.outcome import run\nrun(lambda: print('é'))",
    2: (
        "from cbam_deploy.errors import BadInput\n"
        "from cbam_deploy.commands.outcome import run\n"
        "def command():\n"
        "    print('shown')\n"
        "    raise BadInput('fault é', 'hint')\n"
        "run(command)\n"
    ),
}


def ended(code, redirection, **environment):
    """How a command whose own exit code is `code` ends with its streams redirected."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, COMMANDS[code]],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize(
    "redirection",
    [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "&>/dev/full"],
)
def test_streams_closed_or_full_leave_the_commands_own_exit_code(code, redirection):
    assert ended(code, redirection).returncode == code


@pytest.mark.parametrize("code", [0, 2])
def test_a_reader_that_has_gone_leaves_the_commands_own_exit_code(code):
    done = ended(code, "| true; exit ${PIPESTATUS[0]}")
    assert done.returncode == code
    assert done.stderr.splitlines()[:1] == ([b"error: fault \xc3\xa9"] if code else [])


def test_a_full_standard_output_is_said_in_one_line():
    done = ended(0, ">/dev/full")
    assert done.stderr == b"warning: standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("code", [0, 2])
def test_streams_that_cannot_encode_a_character_show_it_escaped(code):
    done = ended(code, "", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == code
    assert (done.stdout, done.stderr)[code // 2].count(b"\\xe9") >= 1


def test_a_file_never_gets_the_descriptor_of_a_closed_stream(tmp_path):
    script = (
        "import os, sys\n"
        "from cbam_deploy.commands.outcome import run\n"
        "def command():\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        os.write(1, b'stray')\n"
        "        file.write('content')\n"
        "run(command)\n"
    )
    subprocess.run(["bash", "-c", '"$0" -c "$1" >&-', sys.executable, script], check=True)
    assert (tmp_path / "file").read_text() == "content"


def test_streams_are_as_they_were_afterwards():
    before = sys.stdout, sys.stderr
    with lasting_streams():
        assert sys.stdout is not before[0]
        assert isinstance(sys.stdout.encoding, str)
    assert (sys.stdout, sys.stderr) == before
