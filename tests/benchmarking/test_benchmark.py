import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbam_deploy.benchmarking.benchmark import bench
from cbam_deploy.benchmarking.interleaving import MIN_ROUNDS
from cbam_deploy.errors import BadInput


def test_figures_are_those_of_the_machine(machine_of, bench_on):
    report = bench_on(machine_of(), {"a.onnx": 0.001, "b.onnx": 0.002}, batch_sizes=(1, 8))
    found = {(e.artefact, e.batch): e for e in report.entries}
    assert list(found) == [("a.onnx", 1), ("a.onnx", 8), ("b.onnx", 1), ("b.onnx", 8)]
    for (name, batch), measured in found.items():
        per_image = {"a.onnx": 0.001, "b.onnx": 0.002}[name]
        for seconds in ("median_seconds", "p90_seconds", "p95_seconds", "p99_seconds"):
            assert getattr(measured, seconds) == pytest.approx(per_image * batch)
        assert measured.images_per_second.value == pytest.approx(1 / per_image)
        assert measured.runs * measured.median_seconds == pytest.approx(3.0, rel=0.3)
        assert measured.settled
        assert (measured.peak_memory_bytes, measured.peak_memory_of) == (1_000_000, "device")


def test_ratios_to_the_baseline_hold_on_a_machine_that_drifts_and_jumps(machine_of, bench_on):
    random = np.random.default_rng(0)
    machine = machine_of(lambda now: (1 + now / 50) * np.exp(random.normal(0, 0.05)))
    report = bench_on(
        machine,
        {"base.onnx": 0.010, "new.onnx": 0.011},
        batch_sizes=(1,),
        relative_to="base.onnx",
    )
    base, new = report.entries
    assert base.relative is None
    assert new.relative.low <= 1.1 <= new.relative.high
    assert new.relative.high - new.relative.low < 0.1
    assert report.relative_to == "base.onnx"


def test_a_file_in_several_runtimes_is_relative_to_itself_in_the_first(machine_of, bench_on):
    runtimes = ("onnxruntime", "openvino")
    options = {"batch_sizes": (1,), "relative_to": "a.onnx", "seconds": 1.0, "runtime": runtimes}
    report = bench_on(machine_of(), {"a.onnx": 0.010}, **options)
    first, second = report.entries
    assert first.relative is None
    assert second.relative.value == pytest.approx(1)
    assert [entry.runtime for entry in report.entries] == ["fake-onnxruntime", "fake-openvino"]
    assert report.baseline_label == "a.onnx (fake-onnxruntime)"


def test_slower_than_the_baseline_does_not_pass(machine_of, bench_on):
    speeds = {"base.onnx": 0.010, "new.onnx": 0.011}
    options = {"batch_sizes": (1,), "relative_to": "base.onnx", "seconds": 1.0}
    assert not bench_on(machine_of(), speeds, max_slowdown=0.05, **options).passed
    assert bench_on(machine_of(), speeds, max_slowdown=0.15, **options).passed
    assert bench_on(machine_of(), speeds, **options).passed


def test_slower_than_before_does_not_pass(machine_of, bench_on, tmp_path):
    old = bench_on(machine_of(), {"a.onnx": 0.010}, batch_sizes=(1,))
    (tmp_path / "old.json").write_text(json.dumps(old.to_json()))
    options = {"batch_sizes": (1,), "against": "old.json"}  # A check asked for is judged: by 5%.
    assert not bench_on(machine_of(), {"a.onnx": 0.011}, **options).passed
    assert bench_on(machine_of(), {"a.onnx": 0.0104}, **options).passed
    assert bench_on(machine_of(), {"a.onnx": 0.011}, max_slowdown=0.15, **options).passed


def test_relative_to_a_baseline_a_slower_machine_passes(machine_of, bench_on, tmp_path):
    speeds = {"base.onnx": 0.010, "new.onnx": 0.012}
    options: dict[str, object] = {"batch_sizes": (1,), "relative_to": "base.onnx"}
    old = bench_on(machine_of(), speeds, **options)
    (tmp_path / "old.json").write_text(json.dumps(old.to_json()))
    options |= {"against": "old.json", "max_slowdown": 0.05}
    assert bench_on(machine_of(lambda now: 3.0), speeds, **options).passed
    speeds["new.onnx"] = 0.013
    assert not bench_on(machine_of(lambda now: 0.5), speeds, **options).passed


def test_a_baseline_that_the_earlier_report_lacks_is_refused_before_measuring(
    machine_of, bench_on, tmp_path
):
    speeds = {"base.onnx": 0.010, "new.onnx": 0.012}
    old = bench_on(machine_of(), speeds, batch_sizes=(1,))
    (tmp_path / "old.json").write_text(json.dumps(old.to_json()))
    machine = machine_of()
    with pytest.raises(BadInput, match=r"old\.json.*without a baseline"):
        bench_on(machine, speeds, batch_sizes=(1,), relative_to="base.onnx", against="old.json")
    assert machine.log == []


def test_a_batch_outside_the_range_is_refused_before_measuring(machine_of, bench_on):
    machine = machine_of()
    with pytest.raises(BadInput, match=r"b\.onnx: batch 8 is outside its range \(1 to 4\)"):
        bench_on(machine, {"a.onnx": 0.001, "b.onnx": 0.001}, largest={"b.onnx": 4})
    assert machine.log == []
    assert machine.active == []


def test_interruption_passes_through_and_frees_the_runners(machine_of, bench_on):
    def interrupted_after_a_second(now):
        if now > 1.0:
            raise KeyboardInterrupt
        return 1.0

    machine = machine_of(interrupted_after_a_second)
    with pytest.raises(KeyboardInterrupt):
        bench_on(machine, {"a.onnx": 0.001, "b.onnx": 0.001})
    assert len(machine.log) > 0
    assert machine.active == []


def test_durations_that_never_settle_are_noted(machine_of, bench_on):
    report = bench_on(
        machine_of(lambda now: 1 + now), {"a.onnx": 0.01}, batch_sizes=(1,), seconds=1.0
    )
    assert not report.entries[0].settled
    assert "a.onnx" in report.notes[0]


def test_slow_networks_get_enough_rounds_for_an_interval(machine_of, bench_on):
    report = bench_on(machine_of(), {"a.onnx": 5.0}, batch_sizes=(1,), seconds=1.0)
    assert len(report.entries[0].round_seconds) == MIN_ROUNDS


@pytest.mark.parametrize(
    "options",
    [
        {"batch_sizes": ()},
        {"batch_sizes": (0,)},
        {"batch_sizes": (1, 1)},
        {"seconds": 0.0},
        {"seconds": float("nan")},
        {"max_slowdown": 0.05},
        {"max_slowdown": -0.1, "relative_to": "b.onnx"},
        {"max_slowdown": float("nan"), "relative_to": "b.onnx"},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(machine_of, bench_on, options):
    with pytest.raises(BadInput):
        bench_on(machine_of(), {"a.onnx": 0.001, "b.onnx": 0.001}, artefacts=["a.onnx"], **options)


@pytest.fixture(scope="module")
def matmul(tmp_path_factory):
    """``matmul(width)``: an ONNX file of one product with a width x width matrix, free batch."""
    folder = tmp_path_factory.mktemp("matmul")

    def saved(width):
        weight = np.full((width, width), 1 / width, np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
            [numpy_helper.from_array(weight, "w")],
        )
        opset = [helper.make_opsetid("", 18)]
        path = folder / f"matmul{width}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
        return path

    return saved


def median_ratio(measured, baseline):
    return np.median(np.array(measured.round_seconds) / np.array(baseline.round_seconds))


def test_real_files_are_measured_with_their_memory(matmul):
    small, large = matmul(64), matmul(2000)
    report = bench([small, large], batch_sizes=(1,), seconds=0.05, relative_to=small)
    first, second = report.entries
    assert (first.artefact, first.runtime) == ("matmul64.onnx", "onnxruntime-cpu")
    # A thousand times the work: in this order on any machine, however busy.
    assert second.median_seconds > first.median_seconds
    assert second.relative.value == median_ratio(second, first)
    assert first.sha256 != second.sha256
    # A process of Python and ONNX Runtime has over 60 MB before it loads anything.
    assert first.peak_memory_bytes < 40e6
    # 16 MB of weights, less pages that the small one's process took too; ONNX Runtime may hold
    # them twice, packed for its product.
    assert second.peak_memory_of == "process"
    assert 15e6 < second.peak_memory_bytes - first.peak_memory_bytes < 60e6
    assert report.environment["packages"]["onnxruntime"]
    assert set(report.clocks_before) == set(report.clocks_after)
    assert json.dumps(report.to_json())


def test_the_pytorch_model_behind_an_artefact_is_measured_beside_it(network_onnx):
    report = bench(
        [network_onnx], pytorch=True, batch_sizes=(2,), seconds=0.1, relative_to="pytorch"
    )
    artefact, torch = report.entries
    assert (torch.artefact, torch.runtime, torch.sha256) == ("pytorch", "pytorch-cpu", None)
    assert artefact.relative.value == median_ratio(artefact, torch)
    assert torch.peak_memory_bytes > 1e6


def test_a_file_without_provenance_has_no_pytorch_model(matmul):
    with pytest.raises(BadInput, match=r"matmul64\.onnx.*PyTorch"):
        bench(matmul(64), pytorch=True, batch_sizes=(1,), seconds=0.05)
