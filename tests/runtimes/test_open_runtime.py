"""The runner follows from the artefact."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cbam_deploy.engines.manifest import dumps, manifest_path, read_manifest
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.runtimes import open_runtime


def test_onnx_file_runs_in_onnx_runtime(model, pictures):
    with open_runtime(model) as runner:
        assert runner.name == "onnxruntime-cpu"
        assert runner.infer({"input": pictures})["logits"].shape == (3, 5)


def test_engine_runs_in_the_tensorrt_that_built_it(engine):
    runner = open_runtime(engine)
    assert runner.name == "tensorrt-rtx"
    assert runner.batch_range == (1, 4)
    assert runner.inputs[0].shape == ("batch", 3, 8, 8)


def test_running_an_engine_without_a_gpu_is_a_missing_capability(engine, monkeypatch):
    monkeypatch.setattr("cbam_deploy.machine.gpus", lambda: ())
    with pytest.raises(MissingCapability) as refused:
        open_runtime(engine).activate()
    assert refused.value.exit_code == 3
    assert refused.value.message == (
        "running a TensorRT engine needs an NVIDIA GPU, and this machine has none"
    )


def test_altered_engine_is_refused_before_the_gpu_is_asked_for(engine):
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    with pytest.raises(BadInput, match="its bytes are not those"):
        open_runtime(engine)


def test_engine_of_another_version_is_refused(engine, monkeypatch):
    monkeypatch.setattr("cbam_deploy.engines.manifest.installed_version", lambda runtime: "1.6.0.1")
    with pytest.raises(BadInput, match=r"but 1\.6\.0\.1 is installed here"):
        open_runtime(engine)


def test_engine_without_weights_is_refused(engine):
    stripped = replace(read_manifest(engine), options={"strip_weights": True})
    manifest_path(engine).write_text(dumps(stripped))
    with pytest.raises(BadInput, match="holds no weights"):
        open_runtime(engine)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("network.onnx", {"runtime": "tensorrt"}, "not run it, onnxruntime or openvino does"),
        ("network.onnx", {"runtime": "openvino", "device": "cuda"}, "runs it on cpu, not on cuda"),
        ("network.engine", {"runtime": "tensorrt"}, "tensorrt does not run it, tensorrt-rtx does"),
        ("network.engine", {"device": "cpu"}, "not on cpu"),
    ],
)
def test_runtime_or_device_that_does_not_fit_is_refused(engine, model, name, options, complaint):
    with pytest.raises(BadInput, match=complaint):
        open_runtime(engine.with_name(name), **options)


def test_missing_file_and_unknown_kind_are_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"gone.onnx: no such file"):
        open_runtime(tmp_path / "gone.onnx")
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(BadInput, match=r"model.pth: is neither an .onnx nor an .engine file"):
        open_runtime(tmp_path / "model.pth")
