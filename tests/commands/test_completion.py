"""A shell offers commands, options, networks, and the files that a parameter takes."""

import os
import subprocess
import sys

import pytest
import shellingham

from cbam_deploy.commands.completion import RUNTIMES, VARIANTS, ZOO


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("nets", "pictures/cats", ".hidden", "only/deep"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "a.onnx", "b.engine", "old.json", "w.pt", "sp ace.onnx", "nets/net.py",
        "nets/w.safetensors", "only/deep/c.onnx",
    ):  # fmt: skip
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def offered(cli, folder, monkeypatch):
    """What bash gets when TAB is pressed at the end of a line."""

    def complete(line):
        words = ["cbam-deploy", *line.split(" ")]
        monkeypatch.setenv("_CBAM_DEPLOY_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        shown = cli()
        assert shown.err == ""
        return shown.out.split("\n")[:-1]

    return complete


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("bu", ["build-plugin", "build-engine"]),
        ("ex", ["export"]),
        ("fuse --re", ["--report"]),
        ("--ver", ["--version", "--verbose"]),
        ("export resnext", ["resnext50_32x4d", "resnext101_32x4d"]),
        ("--quiet export mob", ["mobilenet"]),
        ("export nets/n", ["nets/net.py"]),
        ("validate x.onnx --reference ne", ["nets/net.py"]),
        ("ablation --model resnet2", ["resnet20"]),
        ("fuse ", ["a.onnx", "nets/", "only/", "pictures/"]),
        ("validate ", ["a.onnx", "b.engine", "nets/", "only/", "pictures/"]),
        ("bench a.onnx b", ["b.engine"]),
        ("bench a.onnx --against o", ["old.json", "only/"]),
        ("export resnet20 --weights w", ["w.pt"]),
        ("export resnet20 --attention s", ["se"]),
        ("convert a.onnx --precision int8", ["int8", "int8+fp32"]),
        ("train resnet20 --data p", ["photos", "pictures/"]),
        ("train resnet20 --data pi", ["pictures/cats/"]),
        ("fuse .", [".hidden/"]),
        ("fuse only", ["only/deep/c.onnx"]),
        ("fuse sp", []),  # It needs quotes, which the shell's own completion sets.
        ("fuse gone/", []),
        ("bench a.onnx --runtime ", ["onnxruntime", "openvino", "tensorrt-rtx", "tensorrt"]),
    ],
)
def test_what_fits_is_offered(offered, line, offers):
    assert [text for text in offered(line) if text] == offers


def test_what_is_offered_by_name_is_what_there_is():
    from cbam_deploy import runtimes
    from cbam_deploy.models import list_models
    from cbam_deploy.studies import variants

    assert list_models() == ZOO
    assert tuple(dict.fromkeys(row.name for row in runtimes.RUNTIMES if row.suffix)) == RUNTIMES
    assert tuple(variant.name for variant in variants.VARIANTS) == VARIANTS


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_without_a_shell_to_complete_in_the_machine_lacks_one(cli, monkeypatch, folder, option):
    def none_found():
        raise shellingham.ShellDetectionFailure

    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(shellingham, "detect_shell", none_found)
    shown = cli(option)
    assert shown.code == 3
    assert "error: no shell" in shown.err


def test_a_fresh_bash_completes(folder):
    """The script that is installed works in a shell that knows nothing else."""
    command = folder / "cbam-deploy"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cbam_deploy "$@"\n')
    command.chmod(0o755)
    script = (
        "source <(_CBAM_DEPLOY_COMPLETE=source_bash cbam-deploy)\n"
        "complete -p cbam-deploy\n"
        "COMP_WORDS=(cbam-deploy validate b); COMP_CWORD=2\n"
        "_cbam_deploy_completion cbam-deploy\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    shown = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == [
        "complete -o default -F _cbam_deploy_completion cbam-deploy",
        "b.engine",
    ]
    assert shown.stderr == ""
