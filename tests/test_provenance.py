"""Provenance survives the trip through JSON, and refuses what it did not write."""

import pytest

from cbam_deploy.data.preprocessing import Preprocessing
from cbam_deploy.errors import BadInput
from cbam_deploy.models.spec import SE, GateSpec
from cbam_deploy.provenance import ModelIdentity, Provenance, package_versions

FULL = Provenance(
    model=ModelIdentity("resnet50", "se", SE, 10, "cifar", 3, "best.safetensors", "ab" * 32),
    preprocessing=Preprocessing.for_size(32),
    class_names=("cat", "dog"),
    precision="fp16",
    gates={"SeGateAddRelu": 16},
    calibration={"method": "entropy"},
    versions={"torch": "2.13.0"},
)


@pytest.mark.parametrize("provenance", [FULL, Provenance()])
def test_json_round_trip_is_lossless(provenance):
    assert Provenance.loads(provenance.dumps()) == provenance


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"schema_version": 99}',
        '{"schema_version": 1}',
        FULL.dumps().replace("avg", "median"),
        FULL.dumps().replace('"seed"', '"sead"'),
    ],
)
def test_foreign_text_is_refused(text):
    with pytest.raises(BadInput, match="provenance"):
        Provenance.loads(text)


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (448, 512), (65, 74), (64, 64), (32, 32)])
def test_imagenet_ratio_is_kept_above_64_pixels(size, resize):
    assert Preprocessing.for_size(size).resize == resize


@pytest.mark.parametrize(
    "fields",
    [
        {"channel_pool": "median"},
        {"kernel_size": 5},
        {"reduction": 0},
        {"spatial": "none"},
        {"arrangement": "channel"},
    ],
)
def test_gate_spec_refuses_what_the_table_lacks(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        GateSpec(**fields)


def test_versions_leave_out_what_is_not_installed():
    assert set(package_versions("numpy", "no-such-package")) == {"numpy"}
