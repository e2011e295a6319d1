"""ONNX Runtime as a runner."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner


def test_outputs_are_those_of_the_graph(model, pictures, reference, tolerance):
    with OnnxRuntimeRunner(model) as runner:
        assert runner.inputs == (TensorSpec("input", ("batch", 3, 8, 8), "float32"),)
        assert runner.outputs == (TensorSpec("logits", ("batch", 5), "float32"),)
        assert runner.batch_range == (1, None)
        logits = runner.infer({"input": pictures})["logits"]
    expected = reference(pictures)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(expected))


def test_a_model_runs_like_its_file(model, pictures):
    with OnnxRuntimeRunner(model) as one, OnnxRuntimeRunner(onnx.load(model), threads=1) as other:
        feeds = {"input": pictures}
        np.testing.assert_array_equal(one.infer(feeds)["logits"], other.infer(feeds)["logits"])


@pytest.mark.parametrize("loaded", [False, True])
def test_external_data_is_found_beside_the_file_and_in_the_folder(
    model, pictures, reference, tolerance, monkeypatch, loaded
):
    proto = onnx.load(model)
    onnx.save(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir("/")
    what = onnx.load(model, load_external_data=False) if loaded else model
    folder = model.parent if loaded else None
    with OnnxRuntimeRunner(what, folder=folder, extra_outputs=("pooled",)) as runner:
        logits = runner.infer({"input": pictures})["logits"]
    expected = reference(pictures)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(expected))


def test_values_inside_the_optimized_graph_are_right(model, pictures, reference, tolerance):
    """Convolution and ReLU are fused by ONNX Runtime; the value between them must survive that."""
    names = ("features", "pooled", "logits")
    with OnnxRuntimeRunner(model, extra_outputs=names) as runner:
        computed = runner.infer({"input": pictures})
    assert set(computed) == set(names)
    for name, expected in reference(pictures).items():
        np.testing.assert_allclose(computed[name], expected, rtol=0, atol=tolerance(expected))


def test_unknown_value_is_refused_by_name(model):
    runner = OnnxRuntimeRunner(model, extra_outputs=("nonsense",))
    with pytest.raises(BadInput, match=r"network.onnx: no node computes 'nonsense'"):
        runner.activate()


@pytest.mark.parametrize("content", [b"", b"not a model", None])
@pytest.mark.parametrize("extra", [(), ("features",)])
def test_what_is_no_model_is_refused_by_name(tmp_path, content, extra):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"broken.onnx"):
        OnnxRuntimeRunner(path, extra_outputs=extra).activate()


def test_external_data_outside_the_folder_is_refused(model):
    (model.parent / "secret.bin").write_bytes(bytes(4 * 3 * 3 * 3 * 4))
    proto = onnx.load(model)
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    inside = model.parent / "inside"
    inside.mkdir()
    (inside / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(BadInput, match=r"model.onnx"):
        OnnxRuntimeRunner(inside / "model.onnx").activate()


def test_fixed_batch_is_the_whole_range(model):
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    with OnnxRuntimeRunner(proto) as runner:
        assert runner.batch_range == (2, 2)
        with pytest.raises(BadInput, match="input: its shape is"):
            runner.infer({"input": np.zeros((3, 3, 8, 8), np.float32)})


@pytest.mark.parametrize(
    ("feeds", "complaint"),
    [
        ({}, "input input: it is not given"),
        ({"input": np.zeros((1, 3, 8, 8), np.float32), "mask": np.zeros(1)}, "input mask: .* no"),
        ({"input": np.zeros((1, 3, 8, 8))}, "input input: its dtype is float64"),
        ({"input": np.zeros((1, 3, 9, 8), np.float32)}, r"its shape is \[1, 3, 9, 8\]"),
        ({"input": np.zeros((3, 8, 8), np.float32)}, r"its shape is \[3, 8, 8\]"),
        ({"input": np.zeros((0, 3, 8, 8), np.float32)}, r"batch 0 is outside its range \(from 1\)"),
        ({"input": [[0.0]]}, "its dtype is list"),
    ],
)
def test_unfit_input_is_refused_by_name(model, feeds, complaint):
    with OnnxRuntimeRunner(model) as runner:
        for run in (runner.infer, runner.prepare):
            with pytest.raises(BadInput, match=complaint):
                run(feeds)


@pytest.fixture
def timed(monkeypatch):
    """What each timed run was bound to, in order."""
    bindings = []
    run = InferenceSession.run_with_iobinding

    def noted(session, binding, *options):
        bindings.append(binding)
        return run(session, binding, *options)

    monkeypatch.setattr(InferenceSession, "run_with_iobinding", noted)
    return bindings


def test_timed_runs_compute_and_are_counted(model, pictures, timed):
    with OnnxRuntimeRunner(model) as runner:
        execution = runner.prepare({"input": pictures})
        seconds = execution.measure(5)
        assert seconds.shape == (5,)
        assert (seconds > 0).all()
        assert execution.peak_memory_bytes() is None
        assert len(timed) == 5
        (bound,) = timed[-1].copy_outputs_to_cpu()
        np.testing.assert_array_equal(bound, runner.infer({"input": pictures})["logits"])


def test_prepared_inputs_of_two_batches_do_not_disturb_each_other(model, pictures, timed):
    with OnnxRuntimeRunner(model) as runner:
        large, small = (runner.prepare({"input": pictures[:size]}) for size in (3, 1))
        large.measure(1)
        small.measure(1)
        results = [binding.copy_outputs_to_cpu()[0] for binding in timed]
        assert [len(result) for result in results] == [3, 1]
        for result in results:
            expected = runner.infer({"input": pictures[: len(result)]})["logits"]
            np.testing.assert_array_equal(result, expected)


def test_cuda_without_its_provider_is_a_missing_capability(model, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingCapability, match="built without CUDA"):
        OnnxRuntimeRunner(model, "cuda").activate()


def test_unknown_device_is_refused(model):
    with pytest.raises(BadInput, match="'tpu'"):
        OnnxRuntimeRunner(model, "tpu")
