"""No malformed ONNX file gets past reading; what is written is whole or not there."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbam_deploy.engines.source import read_source
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs import onnx_file
from cbam_deploy.graphs.onnx_file import (
    read_model,
    read_provenance,
    set_provenance,
    write_model,
)
from cbam_deploy.provenance import Provenance


def add_model(weight):
    """y = x + w."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


WEIGHT = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")


def external_weight(location, offset=0, length=16):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        weight.external_data.add(key=key, value=str(value))
    return weight


def external_in_a_function(location):
    """A model whose function body holds a constant that claims to lie elsewhere."""
    model = add_model(WEIGHT)
    constant = helper.make_node("Constant", [], ["c"], value=external_weight(location))
    function = helper.make_function(
        "own", "Shift", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "c"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


@pytest.fixture
def model_file(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())

    def save(model):
        path = tmp_path / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return save


def assert_refused(path, why):
    with pytest.raises(BadInput) as refused:
        read_model(path)
    assert str(path) in refused.value.message
    assert why in refused.value.message
    assert "\n" not in refused.value.message + refused.value.hint


def test_missing_file_is_refused(tmp_path):
    assert_refused(tmp_path / "gone.onnx", "no such file")


def test_directory_is_refused(tmp_path):
    assert_refused(tmp_path, "is a directory")


@pytest.mark.parametrize("content", [b"", b"\n\x00", bytes(range(256)) * 16])
def test_bytes_that_are_no_model_are_refused(model_file, content):
    assert_refused(model_file(content), "is no ONNX file")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_off_file_is_refused(residual_onnx, model_file, share):
    whole = residual_onnx.read_bytes()
    assert_refused(model_file(whole[: int(len(whole) * share)]), "is no")


def test_random_bytes_are_refused(model_file):
    assert_refused(model_file(os.urandom(4096)), "is no")


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("/etc/passwd", "outside the file's folder"),
        ("../w.bin", "outside the file's folder"),
        ("sub/../../w.bin", "outside the file's folder"),
        ("C:\\w.bin", "outside the file's folder"),
        ("", "outside the file's folder"),
        ("gone.bin", "is missing"),
        ("a\0b", "outside the file's folder"),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "function"])
def test_external_data_elsewhere_is_refused(model_file, tmp_path, place, location, why):
    (tmp_path.parent / "w.bin").write_bytes(bytes(16))
    model = (
        add_model(external_weight(location))
        if place == "initializer"
        else external_in_a_function(location)
    )
    assert_refused(model_file(model), why)


def test_external_data_behind_a_link_out_of_the_folder_is_refused(model_file, tmp_path):
    secret = tmp_path.parent / "secret.bin"
    secret.write_bytes(bytes(16))
    (tmp_path / "link.bin").symlink_to(secret)
    assert_refused(
        model_file(add_model(external_weight("link.bin"))), "is a symbolic link to a place outside"
    )


def test_links_of_file_and_data_into_one_store_are_followed(model_file, tmp_path):
    """As in the cache of a model hub; the person names the link of the file."""
    store = tmp_path / "blobs"
    store.mkdir()
    model_file(add_model(external_weight("model.onnx.data"))).rename(store / "abc")
    (tmp_path / "w.bin").rename(store / "def")
    folder = tmp_path / "snapshots" / "x"
    folder.mkdir(parents=True)
    (folder / "model.onnx").symlink_to("../../blobs/abc")
    (folder / "model.onnx.data").symlink_to("../../blobs/def")
    assert read_source(folder / "model.onnx").external
    write_model(read_model(folder / "model.onnx"), tmp_path / "new.onnx")
    (weight,) = onnx.load(tmp_path / "new.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weight), np.arange(4))
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").symlink_to("/etc/hostname")
    assert_refused(folder / "model.onnx", "is a symbolic link to a place outside")


def test_data_with_several_hard_links_are_read(model_file, tmp_path):
    os.link(tmp_path / "w.bin", tmp_path / "other.bin")
    write_model(read_model(model_file(add_model(external_weight("w.bin")))), tmp_path / "new.onnx")
    (weight,) = onnx.load(tmp_path / "new.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weight), np.arange(4))


@pytest.mark.parametrize("name", ["circle.bin", "x" * 300])
def test_data_that_no_link_leads_to_are_missing(model_file, tmp_path, name):
    (tmp_path / "circle.bin").symlink_to("circle.bin")
    assert_refused(model_file(add_model(external_weight(name))), "is missing")


@pytest.mark.parametrize(
    ("offset", "length", "why"),
    [
        (4, 16, "too short"),
        (1 << 40, 16, "too short"),
        (-4, 16, "too short"),
        (0, 12, "needs 16 bytes, not 12"),
        ("x", 16, "misplaced"),
    ],
)
def test_external_data_of_another_size_is_refused(model_file, offset, length, why):
    assert_refused(model_file(add_model(external_weight("w.bin", offset, length))), why)


def unknown_operator(model):
    model.graph.node[0].op_type = "NoSuchOperator"


def missing_weight(model):
    del model.graph.initializer[:]


def cycle(model):
    model.graph.node[0].input[0] = "y"


def no_opset(model):
    del model.opset_import[:]


def sparse_weight(model):
    model.graph.sparse_initializer.add()


@pytest.mark.parametrize(
    "damage", [unknown_operator, missing_weight, cycle, no_opset, sparse_weight]
)
def test_malformed_graph_is_refused(model_file, damage):
    model = add_model(WEIGHT)
    damage(model)
    assert_refused(model_file(model), "")


def test_external_data_beside_the_file_is_read_and_embedded(model_file, tmp_path):
    model = read_model(model_file(add_model(external_weight("w.bin"))))
    write_model(model, tmp_path / "new.onnx")
    (weight,) = onnx.load(tmp_path / "new.onnx", load_external_data=False).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weight), np.arange(4))


def test_weights_too_large_to_embed_lie_beside_the_file(model_file, tmp_path, monkeypatch):
    """With the limit lowered; the real one is 2 GB."""
    monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 8)
    model = read_model(model_file(add_model(WEIGHT)))
    seen = []
    write_model(model, tmp_path / "new.onnx", lambda path: seen.append(onnx.load(path)))
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.onnx",
        "new.onnx",
        "new.onnx.data",
        "w.bin",
    }
    for loaded in (seen[0], onnx.load(tmp_path / "new.onnx")):
        np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), range(4))
    again = read_model(tmp_path / "new.onnx")
    write_model(again, tmp_path / "new.onnx")
    np.testing.assert_array_equal(
        read_model(tmp_path / "new.onnx").graph.initializers["w"].const_value.numpy(), range(4)
    )


def add_of(value):
    return add_model(numpy_helper.from_array(np.full(4, value, np.float32), "w"))


def weights_at(path):
    return read_model(path).graph.initializers["w"].const_value.numpy().tolist()


class Killed(BaseException):
    """Ends the writing where a killed process would have ended."""


def test_a_kill_between_graph_and_data_leaves_the_earlier_pair(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 8)
    path = tmp_path / "new.onnx"
    write_model(read_model(model_file(add_of(1))), path)
    second = read_model(model_file(add_of(2)))
    replace = Path.replace

    def die_before_the_graph(self, target):
        if Path(target) == path:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die_before_the_graph)
        with pytest.raises(Killed):
            write_model(second, path)
    assert len(list(tmp_path.glob("new.onnx.*data"))) == 2
    assert weights_at(path) == [1] * 4
    write_model(read_model(model_file(add_of(3))), path)
    assert weights_at(path) == [3] * 4
    assert len(list(tmp_path.glob("new.onnx.*data"))) == 1


def test_axes_stay_in_a_graph_whose_weights_lie_beside_it(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 8)
    model = add_model(WEIGHT)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    model.graph.node[0].output[0] = "sum"
    model.graph.node.append(helper.make_node("ReduceMean", ["sum", "axes"], ["y"]))
    write_model(read_model(model_file(model)), tmp_path / "new.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "new.onnx")
    (mean,) = session.run(None, {"x": np.zeros((1, 4), np.float32)})
    assert mean.item() == 1.5


def test_data_that_the_source_refers_to_stays(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 8)
    write_model(read_model(model_file(add_of(1))), tmp_path / "new.onnx")
    (tmp_path / "other.onnx").write_bytes((tmp_path / "new.onnx").read_bytes())
    write_model(read_model(tmp_path / "other.onnx"), tmp_path / "new.onnx")
    assert weights_at(tmp_path / "other.onnx") == weights_at(tmp_path / "new.onnx") == [1] * 4


def test_failing_check_leaves_an_earlier_file(model_file, tmp_path):
    model = read_model(model_file(add_model(WEIGHT)))
    (tmp_path / "out.onnx").write_text("earlier")

    def fail(path):
        raise RuntimeError(f"{path.name} is not good enough")

    with pytest.raises(RuntimeError, match="good enough"):
        write_model(model, tmp_path / "out.onnx", fail)
    assert (tmp_path / "out.onnx").read_text() == "earlier"
    assert not list(tmp_path.glob(".*"))


def test_reading_and_writing_keeps_every_byte_of_our_files(residual_onnx, tmp_path):
    write_model(read_model(residual_onnx), tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == residual_onnx.read_bytes()


def test_provenance_round_trips_through_a_file(model_file, tmp_path):
    path = model_file(add_model(WEIGHT))
    assert read_provenance(path) is None
    model = read_model(path)
    provenance = Provenance(class_names=("cat", "dog"), gates={"SeGate": 3})
    set_provenance(model, provenance)
    write_model(model, tmp_path / "told.onnx")
    assert read_provenance(tmp_path / "told.onnx") == provenance
    assert read_provenance(read_model(tmp_path / "told.onnx")) == provenance


def test_malformed_provenance_is_refused(model_file):
    model = add_model(WEIGHT)
    model.metadata_props.add(key="cbam_deploy.provenance", value="{")
    path = model_file(model)
    for source in (path, read_model(path)):
        with pytest.raises(BadInput, match=f"^{path}: provenance is not JSON"):
            read_provenance(source)


def test_model_read_from_a_relative_path_finds_its_data(model_file, tmp_path, monkeypatch):
    model_file(add_model(external_weight("w.bin")))
    monkeypatch.chdir(tmp_path)
    model = read_model("model.onnx")
    assert isinstance(model, ir.Model)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), range(4))


@pytest.mark.parametrize("ir_version", [3, 10])
@pytest.mark.parametrize("place", [0, 1])
def test_weights_that_are_listed_as_inputs_are_weights_all_the_same(
    model_file, tmp_path, ir_version, place
):
    model = add_model(WEIGHT)
    model.ir_version = ir_version
    listed = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])]
    inputs = [*model.graph.input]
    del model.graph.input[:]
    model.graph.input.extend([*inputs[:place], *listed, *inputs[place:]])
    model.opset_import[0].version = 8
    read = read_model(model_file(model))
    assert [value.name for value in read.graph.inputs] == ["x"]
    assert read.graph.initializers["w"].is_initializer()
    write_model(read, tmp_path / "written.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "written.onnx")
    (y,) = session.run(None, {"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(y, [[1, 2, 3, 4]])
