"""Saved tensors are fed as they are, by the names of the network's inputs."""

import numpy as np
import pytest

from cbam_deploy.data import open_source
from cbam_deploy.data.feeds import InputStream, pictures
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.own_function import import_function

IMAGE = TensorSpec("image", ("batch", 4, "H", "W"), "float32")
STATE = TensorSpec("state", ("batch", 5), "int64")


def opened(path):
    return open_source(str(path), Preprocessing())


def test_an_npy_file_feeds_the_one_input(tmp_path):
    samples = np.random.default_rng(0).standard_normal((5, 4, 2, 3))
    np.save(tmp_path / "x.npy", samples)
    source = opened(tmp_path / "x.npy")
    first, last = pictures(source, [IMAGE], 3, limit=5)
    np.testing.assert_array_equal(first["image"], samples[:3].astype(np.float32))
    np.testing.assert_array_equal(last["image"][:2], samples[3:].astype(np.float32))
    assert InputStream([IMAGE], source, 0, 5, None).label == f"samples of {tmp_path / 'x.npy'}"


def test_an_npz_file_feeds_several_inputs_by_name(tmp_path):
    arrays = {"state": np.arange(10).reshape(2, 5), "image": np.ones((2, 4, 8, 8), np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    (feeds,) = pictures(opened(tmp_path / "x.npz"), [IMAGE, STATE], 2, limit=2)
    for name, array in arrays.items():
        np.testing.assert_array_equal(feeds[name], array)
    assert [feeds[name].dtype for name in ("image", "state")] == [np.float32, np.int64]


def test_labels_in_an_npz_file_are_classes(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((3, 2)), labels=np.array([0, 2, 1]))
    source = opened(tmp_path / "x.npz")
    (batch,) = source.batches(3)
    assert batch.labels.tolist() == [0, 2, 1]
    assert source.class_names == ("0", "1", "2")
    assert set(batch.inputs) == {"image"}


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("x.npz", {"image": np.zeros((2, 4)), "other": np.zeros((2, 5))}, "the network takes"),
        ("x.npz", {"state": np.full((2, 5), 0.5), "image": np.ones((2, 4, 1, 1))}, "float64"),
        ("x.npz", {"image": np.zeros((2, 4)), "state": np.zeros((3, 5))}, "not equally many"),
        ("x.npz", {"image": np.full((2, 4), "text"), "state": np.zeros((2, 5))}, "has <U4 values"),
        ("x.npz", {"image": np.full((2, 4), 1j), "state": np.zeros((2, 5))}, "has complex128"),
        ("x.npz", {"image": np.zeros(2), "labels": np.array([0.5, 1])}, "labels"),
        ("x.npz", {}, "no samples"),
        ("x.npz", {"image": np.array([None, None])}, "is no file of tensors"),
        ("x.npy", np.zeros((0, 3)), "no samples"),
        ("x.npy", np.array([object()], dtype=object), "is no file of tensors"),
    ],
)  # fmt: skip
def test_tensors_of_something_else_are_refused(tmp_path, name, arrays, message):
    path = tmp_path / name
    if name == "x.npz":
        np.savez(path, **arrays)
    else:
        np.save(path, arrays, allow_pickle=True)
    with pytest.raises(BadInput, match=message):
        next(pictures(opened(path), [IMAGE, STATE], 2, limit=2))


def test_what_is_no_archive_is_refused(tmp_path):
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises(BadInput, match="is no file of tensors"):
            opened(tmp_path / name)


def test_a_persons_function_makes_several_inputs_of_one_picture(tmp_path):
    (tmp_path / "way.py").write_text(
        "import numpy as np\n"
        "def prepare(picture):\n"
        "    levels = picture.transpose(2, 0, 1).astype(np.float32)\n"
        "    alpha = np.ones_like(levels[:1])\n"
        "    return {'image': np.concatenate([levels, alpha]), 'state': np.arange(5)}\n"
    )
    source = open_source("digits", import_function(f"{tmp_path / 'way.py'}:prepare"))
    (feeds,) = pictures(source, [IMAGE, STATE], 2, limit=2)
    assert feeds["image"].shape == (2, 4, 8, 8)
    assert (feeds["image"][:, 3] == 1).all()
    assert feeds["image"][:, :3].max() == 255
    np.testing.assert_array_equal(feeds["state"], [range(5)] * 2)


def test_pictures_in_the_layout_that_the_network_takes():
    from cbam_deploy.preprocessing.text import parse

    spec = TensorSpec("x", ("batch", 8, 8, 1), "uint8")
    source = open_source("digits", parse("keep 8, grey, raw, nhwc"))
    (feeds,) = pictures(source, [spec], 2, limit=2)
    assert feeds["x"].shape == (2, 8, 8, 1)
    (batch,) = source.batches(2, limit=2)
    np.testing.assert_array_equal(feeds["x"][..., 0], batch.images[:, 0])
