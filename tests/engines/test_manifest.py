"""What a manifest promises about its engine is noticed when it no longer holds."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cbam_deploy.engines import manifest as room
from cbam_deploy.engines.manifest import (
    Manifest,
    ShapeRange,
    check_runtime,
    dumps,
    manifest_path,
    read_manifest,
)
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import ModelIdentity, Provenance, file_sha256

PLAN = b"a plan" * 100


@pytest.fixture
def engine(tmp_path):
    """An engine file that nothing but its manifest vouches for."""
    path = tmp_path / "model.engine"
    path.write_bytes(PLAN)
    manifest_path(path).write_text(dumps(described(path)))
    return path


def described(path, **changes):
    manifest = Manifest(
        engine_sha256=file_sha256(path),
        engine_bytes=path.stat().st_size,
        onnx="model.onnx",
        onnx_sha256="0" * 64,
        runtime="tensorrt-rtx",
        runtime_version="1.7.1.116",
        targets=("sm_89",),
        inputs=(TensorSpec("input", ("batch", 3, 32, 32), "float32"),),
        outputs=(TensorSpec("logits", ("batch", 10), "float32"),),
        profile={"input": ShapeRange((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))},
        precision="fp32",
        gates={"gate_0": "native"},
        options={},
        build_seconds=1.25,
        command="cbam-deploy build-engine model.onnx -o model.engine",
        versions={"polygraphy": "0.53.6"},
        provenance=Provenance(model=ModelIdentity("resnet20")),
    )
    return dataclasses.replace(manifest, **changes)


def test_manifest_is_read_back_as_it_was_written(engine):
    assert read_manifest(engine) == described(engine)
    assert read_manifest(engine).batch_range == (1, 64)


def test_altered_engine_is_refused(engine):
    engine.write_bytes(PLAN[:-1] + b"m")
    with pytest.raises(BadInput, match=r"model.engine: its bytes are not those"):
        read_manifest(engine)


def test_truncated_engine_is_refused(engine):
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(BadInput, match="its bytes are not those"):
        read_manifest(engine)


@pytest.mark.parametrize("field", [item.name for item in dataclasses.fields(Manifest)])
def test_altered_manifest_is_refused_whatever_field_it_is(engine, field):
    path = manifest_path(engine)
    data = json.loads(path.read_text())
    data[field] = "altered"
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match=r"model.engine.json: the manifest was altered"):
        read_manifest(engine)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("onnx", "../model.onnx"),
        ("onnx", "/etc/passwd"),
        ("onnx", "..\\model.onnx"),
        ("onnx", ""),
        ("runtime", "other"),
        ("precision", "fp12"),
        ("engine_bytes", "1"),
        ("inputs", []),
        ("inputs", [{"name": "input", "shape": [], "dtype": "float32"}]),
        ("outputs", [{"name": "logits", "shape": ["batch"], "dtype": "load"}]),
        ("profile", {}),
        ("profile", {"input": {"min": [1], "opt": [1], "max": [1]}}),
        ("profile", {"input": {"min": [9] * 4, "opt": [8] * 4, "max": [9] * 4}}),
        ("gates", ["native"]),
        ("provenance", []),
        ("build_seconds", "long"),
    ],
)
def test_a_manifest_of_sound_digest_still_has_to_mean_something(engine, field, value):
    path = manifest_path(engine)
    data = {**json.loads(path.read_text()), field: value}
    data["digest"] = room.content_digest({key: data[key] for key in data if key != "digest"})
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match=r"model\.engine\.json: the manifest is malformed"):
        read_manifest(engine)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"schema_version": 1, "options": ' + "[" * 10**5])
def test_a_manifest_nested_without_end_is_refused(engine, text):
    manifest_path(engine).write_text(text)
    with pytest.raises(BadInput, match=r"model\.engine\.json: not a readable manifest"):
        read_manifest(engine)


def test_layout_of_the_manifest_file_does_not_matter(engine):
    path = manifest_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_manifest(engine) == described(engine)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\udcff", '{"schema_version": 2}'])
def test_what_is_no_manifest_is_refused(engine, text):
    manifest_path(engine).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=r"model.engine.json: not a"):
        read_manifest(engine)


def test_missing_manifest_and_missing_engine_are_told_apart(engine):
    manifest_path(engine).unlink()
    with pytest.raises(BadInput, match=r"its manifest model.engine.json is missing"):
        read_manifest(engine)
    engine.unlink()
    with pytest.raises(BadInput, match="no such engine file"):
        read_manifest(engine)


@pytest.mark.parametrize(
    ("built", "installed", "flexible", "accepted"),
    [
        ("1.7.1.116", "1.7.1.116", False, True),
        ("1.7.1.116", "1.7.1.116.post1", False, True),
        ("1.6.0.40", "1.7.1.116", False, False),
        ("10.9.0.34", "10.14.1.48", True, True),
        ("10.14.1.48", "10.9.0.34", True, False),
        ("10.14.1.48", "11.4.0.1", True, False),
    ],
)
def test_engine_of_another_version_is_refused(
    engine, monkeypatch, built, installed, flexible, accepted
):
    monkeypatch.setattr(room, "installed_version", lambda runtime: installed)
    manifest = described(
        engine, runtime_version=built, options={"version_compatible": True} if flexible else {}
    )
    if accepted:
        check_runtime(manifest, engine)
    else:
        with pytest.raises(BadInput, match=f"built by TensorRT-RTX {built}, but {installed} is"):
            check_runtime(manifest, engine)


def test_runtime_that_is_not_installed_is_a_missing_capability(engine):
    manifest = described(engine, runtime="tensorrt")
    with pytest.raises(MissingCapability, match=r"needs TensorRT 1.7.1.116"):
        check_runtime(manifest, engine)
