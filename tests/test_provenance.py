"""Provenance survives the trip through JSON, and refuses what it did not write."""

import json

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import SE, GateSpec
from cbam_deploy.preprocessing import Preprocessing
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


def altered(path, value):
    """The text of `FULL` with another value at `path`, such as ``model.gate.reduction``."""
    data = json.loads(FULL.dumps())
    *folders, last = path.split(".")
    place = data
    for folder in folders:
        place = place[folder]
    place[last] = value
    return json.dumps(data)


FOREIGN: list[object] = [
    None,
    True,
    1.5,
    -1,
    10**30,
    "text",
    "\ud800",
    [],
    [[]],
    {},
    {"a": {}},
    float("nan"),
]
# What each field takes of these.
TAKEN: dict[str, list[object]] = {
    "model": [None],
    "model.name": ["text"],
    "model.attention": [None],
    "model.gate": [None, {}],
    "model.gate.reduction": [],
    "model.num_classes": [None],
    "model.stem": [None],
    "model.seed": [-1],
    "model.weights": [None, "text"],
    "model.weights_sha256": [None, "text"],
    "model.naming": [None, "text"],
    "model.initial_gates": [True],
    "preprocessing": [None, {}],
    "preprocessing.image_size": [],
    "preprocessing.resize": [],
    "preprocessing.mean": [],
    "preprocessing.std": [],
    "sizes": [{}],
    "class_names": [[]],
    "precision": [],
    "gates": [{}],
    "calibration": [{}, {"a": {}}],
    "versions": [{}],
}


@pytest.mark.parametrize("path", TAKEN)
def test_each_field_takes_what_it_stands_for_and_nothing_else(path):
    for value in FOREIGN:
        text = altered(path, value)
        if any(value == good and type(value) is type(good) for good in TAKEN[path]):
            assert Provenance.loads(text)
            continue
        with pytest.raises(BadInput, match=r"provenance is (malformed|not JSON)"):
            Provenance.loads(text)


@pytest.mark.parametrize("deep", ["[" * 10**5, '{"a":' * 10**5, "[" * 500 + "]" * 500])
def test_what_is_nested_without_end_is_refused(deep):
    for text in (deep, FULL.dumps().replace('"entropy"', deep)):
        with pytest.raises(BadInput, match="provenance"):
            Provenance.loads(text)


def test_fields_that_an_earlier_version_did_not_write_have_their_defaults():
    data = json.loads(FULL.dumps())
    del data["model"]["initial_gates"], data["sizes"]
    assert Provenance.loads(json.dumps(data)) == FULL


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (448, 512), (65, 74), (64, 64), (32, 32)])
def test_imagenet_ratio_is_kept_above_64_pixels(size, resize):
    assert Preprocessing.for_size(size).resize == resize


@pytest.mark.parametrize(
    "fields",
    [
        {"channel_pool": "median"},
        {"kernel_size": 4},
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
