from pathlib import Path

import numpy as np
import pytest

from cbam_deploy.benchmarking.sources import PYTORCH, PyTorchSource, Source, list_sources
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.tensors import TensorSpec


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx", "v1/model.onnx", "v2/model.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)


def listed(artefacts, *, pytorch=False, relative_to=None):
    sources, baseline = list_sources(
        artefacts,
        pytorch=pytorch,
        relative_to=relative_to,
        runtimes=(),
        device=None,
        threads=None,
    )
    return [source.name for source in sources], baseline


def test_files_are_called_by_their_names(files):
    assert listed(["a.onnx", "v1/model.onnx"]) == (["a.onnx", "model.onnx"], None)


def test_files_of_one_name_are_called_by_their_paths(files):
    names, _ = listed(["v1/model.onnx", "a.onnx", "v2/model.onnx"])
    assert names == ["v1/model.onnx", "a.onnx", "v2/model.onnx"]


def test_a_baseline_that_is_not_among_the_artefacts_is_measured_too(files):
    assert listed(["a.onnx"], relative_to="b.onnx") == (["b.onnx", "a.onnx"], "b.onnx")


def test_a_baseline_among_the_artefacts_is_measured_once(files):
    found = listed(["a.onnx", "b.onnx"], relative_to="./b.onnx")
    assert found == (["a.onnx", "b.onnx"], "b.onnx")


@pytest.mark.parametrize("first", ["a.onnx", "./a.onnx", "v1//../a.onnx", Path("a.onnx")])
def test_the_pytorch_model_of_the_first_artefact_comes_last(files, first):
    sources, baseline = list_sources(
        [first, "b.onnx"],
        pytorch=True,
        relative_to="pytorch",
        runtimes=(),
        device=None,
        threads=None,
    )
    assert isinstance(sources[-1], PyTorchSource)
    assert sources[-1].artefact == sources[0].artefact
    assert baseline == PYTORCH


def test_the_pytorch_model_is_that_of_the_first_file_however_its_path_is_written(files):
    sources, _ = list_sources(
        ["./a.onnx", "b.onnx"],
        pytorch=True,
        relative_to=None,
        runtimes=(),
        device=None,
        threads=None,
    )
    assert sources[-1].artefact == sources[0].artefact


@pytest.mark.parametrize(
    ("artefacts", "options", "word"),
    [
        ([], {}, "no artefact"),
        (["gone.onnx"], {}, "gone.onnx"),
        (["v1"], {}, "directory"),
        (["a.onnx", "./a.onnx"], {}, "twice"),
        (["a.onnx"], {"relative_to": "gone.onnx"}, "gone.onnx"),
        (["a.onnx"], {"relative_to": "a.onnx"}, "only thing"),
        (["a.onnx"], {"relative_to": "pytorch"}, "PyTorch"),
    ],
)
def test_what_cannot_be_measured_is_refused(files, artefacts, options, word):
    with pytest.raises(BadInput, match=word):
        listed(artefacts, **options)


class Interface:
    """What a source reads of an activated runner."""

    batch_range = (2, 4)
    inputs = (TensorSpec("x", ("n", 3, 5, 5), "float16"),)
    outputs = (TensorSpec("y", ("n", 2), "float16"),)


def test_a_batch_outside_the_range_is_refused_with_artefact_batch_and_range(files):
    with pytest.raises(BadInput, match=r"a\.onnx: batch 5 is outside its range \(2 to 4\)"):
        Source("a.onnx", "a.onnx").check_batches(Interface(), [2, 4, 5])
    with pytest.raises(BadInput, match="batch 1 "):
        Source("a.onnx", "a.onnx").check_batches(Interface(), [1])
    Source("a.onnx", "a.onnx").check_batches(Interface(), [2, 3, 4])


def test_inputs_are_noise_of_the_runners_shape_and_type_and_follow_the_seed(files):
    source = Source("a.onnx", "a.onnx")
    feeds = source.feeds(Interface(), 4, seed=1)["x"]
    assert feeds.shape == (4, 3, 5, 5)
    assert feeds.dtype == np.float16
    assert len(np.unique(feeds)) > feeds.size / 2
    assert np.array_equal(feeds, source.feeds(Interface(), 4, seed=1)["x"])
    assert not np.array_equal(feeds, source.feeds(Interface(), 4, seed=2)["x"])


def test_the_pytorch_model_takes_what_its_artefact_takes_in_fp32_at_any_batch(files):
    feeds = Source("a.onnx", "a.onnx").feeds(Interface(), 4, seed=1)
    like = PyTorchSource(PYTORCH, "a.onnx").like(Interface(), feeds)
    assert like.inputs == (TensorSpec("x", ("batch", 3, 5, 5), "float32"),)
    assert like.outputs == ("y",)
    assert like.sha256 is None


def in_runtimes(artefact, runtimes):
    options = {"pytorch": False, "relative_to": None, "device": None, "threads": None}
    sources, _ = list_sources([artefact], runtimes=runtimes, **options)
    return [source.runtime for source in sources]


def test_a_file_is_measured_in_each_runtime_that_runs_it(files, tmp_path):
    (tmp_path / "a.engine").write_text("")
    runtimes = ("openvino", "tensorrt-rtx", "onnxruntime")
    assert in_runtimes("a.onnx", runtimes) == ["openvino", "onnxruntime"]
    assert in_runtimes("a.engine", runtimes) == ["tensorrt-rtx"]
    # One that none runs, or that no one knows, is left for opening it to refuse.
    assert in_runtimes("a.engine", ("openvino", "onnxruntime")) == ["openvino"]
    assert in_runtimes("a.onnx", ("nonsense",)) == ["nonsense"]
    with pytest.raises(BadInput, match="given twice"):
        in_runtimes("a.onnx", ("openvino", "openvino"))
