"""No output takes the place of a file that the same command reads or writes."""

import os
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cbam_deploy.cli import app
from cbam_deploy.command_files import Input, declarations, declare_input
from cbam_deploy.commands.training import RUN_FILES
from cbam_deploy.errors import BadInput
from cbam_deploy.outputs import write_text

ONNX_FILE = onnx.helper.make_model(
    onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1])],
        [onnx.helper.make_tensor_value_info("y", 1, [1])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "w")],
    )
)
CONFLICTS = [
    ("export resnet20 --weights w.pt -o w.pt", "w.pt"),
    ("export resnet20 --weights w.pt -o ./sub/../w.pt", "w.pt"),
    ("export resnet20 --weights w.pt -o hard.pt", "hard.pt"),
    ("export resnet20 --weights soft.pt -o w.pt", "w.pt"),
    ("export resnet20 -o soft.pt --weights w.pt", "soft.pt"),
    ("export net.py:f -o net.py", "net.py"),
    ("export ./net.py:f -o sub/../net.py", "net.py"),
    ("export net:f -o net.py", "net.py"),
    ("export resnet20 --precision int8 --calibration photos_ -o photos_/a/1.png", "1.png"),
    ("convert a.onnx -o a.onnx", "a.onnx"),
    ("convert a.onnx -o h.onnx --report a.onnx", "a.onnx"),
    ("convert a.onnx -o h.onnx --report h.onnx", "h.onnx"),
    ("convert big.onnx -o weights.bin", "weights.bin"),
    ("fuse big.onnx -o weights.bin", "weights.bin"),
    ("build-engine a.onnx -o a.onnx", "a.onnx"),
    ("build-engine a.onnx.json -o a.onnx", "a.onnx.json"),
    ("build-engine a.onnx -o a.engine --timing-cache a.engine", "a.engine"),
    ("build-engine a.onnx -o a.engine --timing-cache a.engine.json", "a.engine.json"),
    ("build-engine a.onnx -o b.engine --timing-cache a.onnx", "a.onnx"),
    ("validate a.onnx --report a.onnx", "a.onnx"),
    ("validate a.onnx --junit a.onnx", "a.onnx"),
    ("validate a.onnx --junit x --report x", "x"),
    ("validate a.onnx --weights w.pt --report w.pt", "w.pt"),
    ("validate a.onnx --reference net.py:f --report net.py", "net.py"),
    ("validate a.engine --report a.engine.json", "a.engine.json"),
    ("validate a.onnx --data photos_ --report photos_/a/1.png", "1.png"),
    ("evaluate a.onnx h0.onnx --data digits --report h0.onnx", "h0.onnx"),
    ("bench a.onnx --report x --html sub/../x", "x"),
    ("bench a.onnx --relative-to h0.onnx --html h0.onnx", "h0.onnx"),
    ("bench a.onnx --against old.json --max-slowdown 5% --report old.json", "old.json"),
    ("train resnet20 --data digits --weights run/best.safetensors -o run", "best.safetensors"),
    ("train resnet20 --data digits --weights w.pt -o linked", "last.pt"),
    ("complexity a.onnx --report a.onnx", "a.onnx"),
    ("complexity resnet20 --weights w.pt --report w.pt", "w.pt"),
    ("gradcam w.pt --data photos_ --report w.pt", "w.pt"),
    ("gradcam resnet20=w.pt --data photos_ --report w.pt", "w.pt"),
    ("gradcam net.py:f=w.pt --data photos_ --report net.py", "net.py"),
    ("gradcam resnet20 --data photos_ --artefact a.onnx --report a.onnx", "a.onnx"),
    ("gradcam resnet20 --data photos_ -o out --report out/gradcam.html", "gradcam.html"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder of files that may not be lost."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("sub", "run", "photos_/a", "linked", "out"):
        (folder / name).mkdir(parents=True)
    for name in ("w.pt", "net.py", "old.json", "a.engine", "a.engine.json", "photos_/a/1.png"):
        (folder / name).write_text(name)
    (folder / "run" / "best.safetensors").write_text("best")
    for name in ("a.onnx", "h0.onnx", "a.onnx.json"):
        onnx.save(ONNX_FILE, folder / name)
    copy = onnx.ModelProto.FromString(ONNX_FILE.SerializeToString())
    onnx.save(
        copy, folder / "big.onnx", save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    (folder / "hard.pt").hardlink_to(folder / "w.pt")
    (folder / "soft.pt").symlink_to("w.pt")
    (folder / "linked" / "last.pt").symlink_to("../w.pt")
    return folder


@pytest.mark.parametrize(("line", "named"), CONFLICTS)
def test_an_output_that_is_also_an_input_or_another_output_is_refused(
    cli, folder, monkeypatch, line, named
):
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = cli(*line.split())
    assert ended.code == 2
    assert f"{named}: " in ended.error
    assert "replace" in ended.error or "both write" in ended.error
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_fusing_a_file_in_place_stays_allowed(cli, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    onnx.save(ONNX_FILE, "a.onnx")
    assert cli("fuse", "a.onnx", "-o", "a.onnx").code == 0


def test_derived_outputs_that_no_option_names_replace_no_input(tmp_path):
    figure = tmp_path / "figure.png"
    figure.write_text("picture")
    with declarations():
        declare_input(Input(tmp_path, "--data", lambda path: path == figure))
        with pytest.raises(BadInput, match=r"figure\.png: an output would replace it"):
            write_text(figure, "other")
        write_text(tmp_path / "other.png", "other")
    assert figure.read_text() == "picture"
    write_text(figure, "no command runs any more")


NO_FILES = {
    "attention", "gate", "stem", "inputs", "output_name", "runtime", "size", "target", "layer",
    "model", "variant", "precision", "method", "io_dtype", "augmentation", "amp", "device",
    "tensorrt", "check", "model_name", "grpc", "backend", "container",
    "cache",  # A folder of trials is neither what a search reads nor what it makes.
}  # fmt: skip


def test_every_parameter_that_may_name_a_file_declares_it():
    for command in app.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *metadata = get_args(hint) if get_origin(hint) is Annotated else [hint]
            undeclared = not any(getattr(data, "callback", None) for data in metadata)
            kinds = {kind, *get_args(kind), *(k for a in get_args(kind) for k in get_args(a))}
            if undeclared and kinds & {str, Path}:
                assert name in NO_FILES, f"{command.name}: {name} declares no file"


def test_the_names_of_a_run_are_those_that_training_writes():
    from cbam_deploy.training import run_folder

    assert set(RUN_FILES) == {run_folder.BEST, run_folder.LAST, run_folder.HISTORY}


@pytest.mark.parametrize(
    "line",
    [
        "export resnet20 --weights PIPE -o out.onnx",
        "fuse PIPE -o out.onnx",
        "validate a.onnx --weights PIPE",
        "bench a.onnx --against PIPE --max-slowdown 5%",
        "inspect PIPE",
        "evaluate a.onnx --data PIPE",
        "build-engine a.onnx -o a2.engine --timing-cache PIPE",
        "gradcam resnet20=PIPE --data digits",
    ],
)
def test_inputs_that_may_never_end_are_refused(cli, folder, monkeypatch, line, tmp_path):
    monkeypatch.chdir(folder)
    os.mkfifo(tmp_path / "pipe")
    ended = cli(*line.replace("PIPE", str(tmp_path / "pipe")).split())
    assert ended.code == 2
    assert "is a pipe, not a regular file" in ended.error


def test_an_engine_and_a_pair_need_regular_files(cli, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    Path(tmp_path / "e.engine.json").mkdir()
    ended = cli("build-engine", "a.onnx", "-o", tmp_path / "e.engine")
    assert ended.code == 2
    assert "e.engine.json: is a directory" in ended.error


def test_functions_refuse_what_may_never_end(tmp_path):
    from cbam_deploy.benchmarking.result import read_report
    from cbam_deploy.engines.manifest import read_manifest
    from cbam_deploy.graphs.onnx_file import read_model
    from cbam_deploy.models import load_state

    (tmp_path / "a.engine").touch()
    for name in ("pipe", "pipe.safetensors", "a.engine.json", "b.engine"):
        os.mkfifo(tmp_path / name)
    for read, name in (
        (read_report, "pipe"),
        (read_model, "pipe"),
        (read_manifest, "a.engine"),
        (read_manifest, "b.engine"),
        (load_state, "pipe"),
        (load_state, "pipe.safetensors"),
    ):
        with pytest.raises(BadInput, match="is a pipe, not a regular file"):
            read(tmp_path / name)
