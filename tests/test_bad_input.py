"""Every careless or hostile input: two lines, the right exit code, nothing harmed."""

import json
import os
import shutil
import subprocess

import onnx
import pytest
from onnx import TensorProto, helper

from cbam_deploy.engines.manifest import read_manifest

READERS = {
    "fuse": ["-o", "out.onnx"],
    "convert": ["-o", "out.onnx"],
    "build-engine": ["-o", "out.engine", "--target", "sm_89"],
    "validate": [],
    "evaluate": ["--data", "digits"],
    "bench": ["--seconds", "0.1"],
    "inspect": [],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder in which earlier artefacts lie."""
    monkeypatch.chdir(tmp_path)
    for name in ("out.onnx", "out.engine", "out.engine.json"):
        (tmp_path / name).write_text("earlier")
    return tmp_path


def assert_unharmed(folder, *inputs):
    assert {path.name for path in folder.iterdir()} == {
        "out.onnx",
        "out.engine",
        "out.engine.json",
        *inputs,
    }
    for name in ("out.onnx", "out.engine", "out.engine.json"):
        assert (folder / name).read_text() == "earlier"


def relu_with_external_weight(location):
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="offset", value="0")
    weight.external_data.add(key="length", value="16")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "random", "truncated"])
def test_what_is_no_onnx_file_is_refused(cli, folder, digits_onnx, command, kind):
    broken = folder / "broken.onnx"
    if kind == "directory":
        broken.mkdir()
    elif kind != "missing":
        whole = digits_onnx.read_bytes()
        content = {"empty": b"", "random": os.urandom(4096), "truncated": whole[: len(whole) // 2]}
        broken.write_bytes(content[kind])
    ended = cli(command, "broken.onnx", *READERS[command])
    assert ended.code == 2
    assert "broken.onnx" in ended.error
    assert_unharmed(folder, *([] if kind == "missing" else ["broken.onnx"]))


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "gone.bin"])
def test_external_data_outside_the_folder_or_missing_is_refused(cli, folder, command, location):
    (folder.parent / "secret.bin").write_bytes(bytes(64))
    onnx.save(relu_with_external_weight(location), folder / "model.onnx")
    ended = cli(command, "model.onnx", *READERS[command])
    assert ended.code == 2
    assert "model.onnx" in ended.error
    assert_unharmed(folder, "model.onnx")


@pytest.mark.parametrize("command", ["validate", "bench", "inspect"])
def test_unknown_kind_of_artefact_is_refused(cli, folder, command):
    (folder / "model.pth").write_bytes(b"x")
    ended = cli(command, "model.pth")
    assert ended.code == 2
    assert "model.pth" in ended.error


def test_checkpoint_of_another_model_is_refused_with_its_keys(cli, folder, digits_run):
    ended = cli(
        "export", "resnet18", "-o", "out.onnx", "--weights", digits_run / "best.safetensors"
    )
    assert ended.code == 2
    assert "best.safetensors" in ended.error
    assert_unharmed(folder)


def test_checkpoint_with_code_in_it_is_refused_and_not_run(cli, folder):
    import pickle

    class Mischief:
        def __reduce__(self):
            return os.mkdir, (str(folder / "mischief"),)

    (folder / "model.pth").write_bytes(pickle.dumps({"state_dict": Mischief()}))
    ended = cli("export", "resnet8", "-o", "out.onnx", "--weights", "model.pth")
    assert ended.code == 2
    assert "model.pth" in ended.error
    assert_unharmed(folder, "model.pth")


def engine_copy(engine, folder):
    copy = folder / "model.engine"
    shutil.copy(engine, copy)
    shutil.copy(engine.with_name(engine.name + ".json"), folder / "model.engine.json")
    return copy


def flip_a_bit(engine, manifest):
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)


def cut_short(engine, manifest):
    engine.write_bytes(engine.read_bytes()[:-100])


def claim_another_precision(engine, manifest):
    manifest.write_text(manifest.read_text().replace("fp32", "int8"))


def garble_manifest(engine, manifest):
    manifest.write_text("{")


def remove_manifest(engine, manifest):
    manifest.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "evaluate", "bench", "inspect"])
@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, claim_another_precision, garble_manifest, remove_manifest]
)
def test_altered_engine_or_manifest_is_refused(cli, folder, digits_engine, command, damage):
    engine = engine_copy(digits_engine, folder)
    damage(engine, folder / "model.engine.json")
    ended = cli(command, engine.name, *READERS[command])
    assert ended.code == 2
    assert "model.engine" in ended.error


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "evaluate", "bench"])
def test_sound_engine_without_a_gpu_is_exit_3(cli, folder, digits_engine, command):
    engine = engine_copy(digits_engine, folder)
    weights = read_manifest(engine).provenance.model.weights
    named = ["--weights", weights] if command == "validate" else []
    ended = cli(command, engine.name, *READERS[command], *named)
    assert ended.code == 3
    assert "GPU" in ended.error


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "bench"])
def test_batch_outside_the_profile_is_refused(cli, folder, digits_engine, command):
    engine = engine_copy(digits_engine, folder)
    ended = cli(command, engine.name, "--batch", "65")
    assert ended.code == 2
    assert "65" in ended.error
    assert "64" in ended.error


WRITERS = {
    "export": ["resnet8", "-o"],
    "fuse": ["{onnx}", "-o"],
    "convert": ["{onnx}", "-o"],
    "build-engine": ["{onnx}", "--target", "sm_89", "-o"],
    "train": ["resnet8", "--data", "digits", "--epochs", "1", "--quiet", "-o"],
}
REPORTERS = {
    "validate": ["{onnx}", "--weights", "{run}/best.safetensors", "--report"],
    "evaluate": ["{onnx}", "--data", "digits", "--limit", "8", "--report"],
    "bench": ["{onnx}", "--seconds", "0.1", "--batch", "1", "--report"],
}


@pytest.fixture
def arguments_of(digits_run, digits_onnx):
    def arguments(table, command):
        return [command, *(w.format(onnx=digits_onnx, run=digits_run) for w in table[command])]

    return arguments


@pytest.mark.parametrize("command", ["export", "fuse", "convert", "build-engine", *REPORTERS])
def test_output_in_a_missing_folder_is_refused(cli, folder, arguments_of, command):
    arguments = arguments_of(WRITERS | REPORTERS, command)
    ended = cli(*arguments, "missing/folder/out")
    assert ended.code == 2
    assert "missing/folder" in ended.error
    assert_unharmed(folder)


@pytest.fixture
def tiny_disk(tmp_path):
    """A mounted file system of 64 KiB; where mounting is not allowed, the test says so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


LARGE_AND_QUICK = """
from torch import nn

def build():
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4096), nn.Linear(4096, 10)
    )
"""


@pytest.mark.parametrize("command", WRITERS)
def test_full_disk_is_one_line_and_leaves_nothing(cli, tiny_disk, arguments_of, command):
    earlier = tiny_disk / "out"
    if command != "train":
        earlier.write_text("earlier")
    arguments = arguments_of(WRITERS, command)
    if "resnet8" in arguments:
        network = tiny_disk.with_name("network.py")
        network.write_text(LARGE_AND_QUICK)
        arguments[1:2] = [f"{network}:build", "--image-size", "8"]
    ended = cli(*arguments, earlier)
    assert ended.code == 2
    assert "no space left" in ended.error
    if command == "train":
        assert not [path for path in tiny_disk.rglob("*") if path.is_file()]
    else:
        assert [path.name for path in tiny_disk.iterdir()] == ["out"]
        assert earlier.read_text() == "earlier"


@pytest.mark.slow
@pytest.mark.parametrize("command", REPORTERS)
def test_report_on_a_full_disk_is_one_line_and_loses_nothing(cli, tiny_disk, arguments_of, command):
    report = tiny_disk / "report.json"
    report.write_text("earlier")
    with pytest.raises(OSError, match="No space"), (tiny_disk / "filler").open("wb") as filler:
        filler.write(bytes(1 << 20))
    ended = cli(*arguments_of(REPORTERS, command), report)
    assert ended.code == 2
    assert "no space left" in ended.error
    assert {path.name for path in tiny_disk.iterdir()} == {"report.json", "filler"}
    assert report.read_text() == "earlier"


@pytest.fixture
def pictures(folder):
    """A folder of calibration pictures without a single readable one, and an empty folder."""
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("calibration", "fault"),
    [
        ([], "needs pictures"),
        (["--calibration", "empty"], "empty"),
        (["--calibration", "broken"], "broken"),
        (["--calibration", "nowhere"], "nowhere"),
    ],
)
def test_int8_without_a_picture_to_calibrate_on_is_refused(
    cli, pictures, digits_onnx, calibration, fault
):
    ended = cli("convert", digits_onnx, "-o", "out.onnx", "--precision", "int8", *calibration)
    assert ended.code == 2
    assert fault in ended.error
    assert_unharmed(pictures, "empty", "broken")


@pytest.mark.slow
@pytest.mark.parametrize("again", ["fp16", "int8"])
def test_quantizing_twice_is_refused(cli, folder, digits_onnx, again):
    options = ["--precision", "int8", "--calibration", "digits", "--images", "8"]
    assert cli("convert", digits_onnx, "-o", "int8.onnx", *options).code == 0
    options[1] = again
    ended = cli("convert", "int8.onnx", "-o", "out.onnx", *options)
    assert ended.code == 2
    assert "int8.onnx: is quantized already" in ended.error
    assert_unharmed(folder, "int8.onnx")


def test_report_of_a_failed_command_is_not_written(cli, folder):
    ended = cli("bench", "missing.onnx", "--report", "bench.json")
    assert ended.code == 2
    assert_unharmed(folder)


def test_earlier_report_of_another_kind_is_refused(cli, folder, digits_onnx):
    (folder / "old.json").write_text(json.dumps({"kind": "shopping list"}))
    ended = cli(
        "bench", digits_onnx, "--against", "old.json", "--max-slowdown", "5%", "--seconds", "0.1"
    )
    assert ended.code == 2
    assert "old.json" in ended.error
    assert_unharmed(folder, "old.json")
