"""The study fills every cell, says which it could not, and does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cbam_deploy import ablation
from cbam_deploy.benchmarking import interleaving
from cbam_deploy.errors import BadInput, CheckFailed
from cbam_deploy.gates.description import CBAM, GATES, GateSpec
from cbam_deploy.models import create_model
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.studies import run, variant_training
from cbam_deploy.studies.result import AblationReport, Latency, SeedResult, VariantResult
from cbam_deploy.studies.variants import VARIANTS, chosen_variants

OPTIONS = {
    "model": "resnet8",
    "variants": ["max"],
    "epochs": 1,
    "seeds": 1,
    "seconds": 0.01,
    "image_size": 8,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Plain and max pooling, one epoch each; latencies as rough as they are quick to have."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interleaving, "ROUND_SECONDS", 0.002)
        return folder, ablation(folder, **OPTIONS)


def test_the_paper_studies_are_all_there_and_every_variant_is_another():
    gates = [variant.gate for variant in VARIANTS]
    assert len(set(gates)) == len(gates)
    assert {(g.channel_pool, g.spatial) for g in gates if g and g.spatial == "none"} == {
        ("avg", "none"),
        ("max", "none"),
        ("avg+max", "none"),
    }
    assert {(g.spatial, g.kernel_size) for g in gates if g and g.spatial != "none"} == {
        ("pool", 3),
        ("pool", 7),
        ("conv1x1", 3),
        ("conv1x1", 7),
    }
    arrangements = {g.arrangement for g in gates if g}
    assert arrangements >= {"channel-spatial", "spatial-channel", "parallel"}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variants_options_make_its_network(variant):
    model = create_model("resnet20", num_classes=10, **variant.options())
    found = {m.spec for m in model.modules() if isinstance(m, AttentionGate)}
    assert found == ({variant.gate} if variant.gate else set())


def test_any_gate_can_be_compared_with_the_plain_network():
    chosen = chosen_variants(["cbam", "eca", "cbam-linear,kernel_size=3"])
    assert [variant.name for variant in chosen] == [
        "plain",
        "cbam",
        "eca",
        "cbam-linear-kernel_size-3",
    ]
    assert [variant.gate for variant in chosen] == [
        None,
        CBAM,
        GATES["eca"],
        GateSpec(channel_pool="avg", mixer="linear", kernel_size=3),
    ]


@pytest.mark.slow
def test_every_column_of_a_row_is_filled(study):
    folder, report = study
    assert report.passed
    assert [row.name for row in report.rows] == ["plain", "max"]
    plain, gated = report.rows
    for row in report.rows:
        (cell,) = row.cells
        history = json.loads((folder / "runs" / f"{row.name}-0" / "history.json").read_text())
        assert cell.accuracy == history["epochs"][-1]["val_accuracy"]
        assert row.engine_bytes == (folder / f"{row.name}.engine").stat().st_size
        (latency,) = row.latencies
        assert latency.runtime == "onnxruntime-cpu"
        assert latency.median_seconds > 0
    assert plain.latencies[0].of_plain == 1
    assert gated.latencies[0].of_plain > 0
    assert gated.parameters - plain.parameters == sum(
        2 * c * (c // 16) + c + c // 16 for c in (16, 32, 64)
    )


@pytest.mark.slow
def test_other_options_in_the_same_folder_are_refused(study):
    with pytest.raises(BadInput, match="batch"):
        ablation(study[0], **OPTIONS, batch_size=32)


@pytest.mark.slow
def test_the_reports_are_written(study):
    folder, report = study
    assert json.loads((folder / "ablation.json").read_text())["rows"][1]["name"] == "max"
    text = (folder / "ablation.md").read_text()
    assert text == report.markdown()
    assert "cannot show" in text
    page = (folder / "ablation.html").read_text()
    assert page.count("<svg") == 2
    assert "channel: max" in page


@pytest.mark.slow
def test_a_second_call_trains_and_exports_nothing_again(study, monkeypatch):
    folder, report = study
    last = [folder / "runs" / f"{row.name}-0" / "last.pt" for row in report.rows]
    written = [path.stat().st_mtime_ns for path in last]

    def never(*arguments, **options):
        raise AssertionError("exported again")

    monkeypatch.setattr(variant_training, "export_onnx", never)
    monkeypatch.setattr(run, "build_variant", lambda onnx: None)
    monkeypatch.setattr(run, "bench", lambda *files, **options: SimpleNamespace(entries=()))
    again = ablation(folder, **OPTIONS)
    assert [path.stat().st_mtime_ns for path in last] == written
    assert [row.cells for row in again.rows] == [row.cells for row in report.rows]
    assert again.rows[0].engine_bytes is None


def report(*results):
    return AblationReport("p.html", "resnet20", "digits", 1, (0, 1), results, {})


def result(*answers):
    latency = Latency("onnxruntime-cpu", 1e-3, 1e-3, 2e-3, (1e-3,), 1.25)
    return VariantResult("max", "channel: max", "s", answers, 1000, 10**6, None, (latency,))


def test_mean_and_spread_are_over_seeds_and_a_failed_cell_is_named():
    full = result(SeedResult(0, 0.98), SeedResult(1, 0.96))
    assert full.table_row()[2] == "3.00 ± 1.41"
    assert full.table_row()[6:8] == ("1.000", "1.25")
    empty = result(SeedResult(0, 0.98), SeedResult(1, None, "the loss is no longer a number"))
    assert empty.table_row()[2] == "2.00 (1 failed)"
    found = report(full, empty)
    assert not found.passed
    assert "max, seed 1: the loss is no longer a number" in found.failure()[0]
    assert "Failed: max, seed 1" in found.markdown()


def test_a_diverged_cell_is_a_failed_one(monkeypatch, tmp_path):
    def diverge(**options):
        raise CheckFailed("epoch 1: the loss is nan", "lower --lr")

    monkeypatch.setattr(variant_training, "train", diverge)
    cell = variant_training.train_variant(
        tmp_path, VARIANTS[0], 3, {"model": "resnet20", "data": "digits"}
    )
    assert cell == SeedResult(3, None, "epoch 1: the loss is nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ["min"]}, "variant 'min'"),
        ({"variants": ["cbam", "kernel_size=7"]}, "two are the same gate"),
        ({"seeds": 0}, "0 seeds"),
    ],
)
def test_what_cannot_be_studied_is_refused(options, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        ablation(tmp_path / "study", **options)
    assert not Path(tmp_path / "study").exists()


def test_the_learning_rate_falls_at_the_recipes_share_of_the_way():
    def step(model, data, epochs):
        return run.training_settings(model, data, epochs, None, None)["lr_step"]

    assert step("resnet20", "digits", None) == 5
    assert step("resnet20", "digits", 3) == 2
    assert step("resnet50", "folder", None) == 30
