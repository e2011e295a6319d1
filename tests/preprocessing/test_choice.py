"""What a person says holds before what a file records, and a file's word imports nothing."""

import logging
import sys

import numpy as np
import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.choice import PictureInput, choose, understood
from cbam_deploy.preprocessing.own_function import OwnFunction, import_function, recorded
from cbam_deploy.preprocessing.text import parse, text_of
from cbam_deploy.provenance import Provenance

DETECTOR = PictureInput("yolo.onnx", "images", ("batch", 3, "height", "width"), {})
FIXED = PictureInput("net.onnx", "x", (1, 3, 32, 32), {})


def test_what_is_said_holds_before_what_is_recorded_and_a_warning_says_so(caplog):
    said = choose("letterbox 64, /255", Preprocessing(), DETECTOR)
    assert text_of(said) == "letterbox 64, pad 114, rgb, /255"
    assert "records 'resize 256, crop 224, rgb, imagenet'" in caplog.text


def test_what_is_recorded_holds_in_silence(caplog):
    one = parse("letterbox 64, /255")
    assert choose(None, one, DETECTOR) is one
    assert choose(one, one, DETECTOR) is one
    assert not caplog.records


def test_imagenets_way_is_a_guess_that_a_warning_names(caplog):
    with caplog.at_level(logging.WARNING):
        assert choose(None, None, FIXED).frame == (32, 32)
    assert "net.onnx: does not say how its pictures are prepared" in caplog.text
    assert "--preprocess" in caplog.text


@pytest.mark.parametrize("said", ["letterbox 64, /255", "stretch 32, grey, /255", "raw, nhwc"])
def test_pictures_that_the_input_does_not_take_are_refused(said):
    with pytest.raises(BadInput, match=r"input x takes \[1, 3, 32, 32\]"):
        choose(said, None, FIXED)


TOML = """
letterbox = [32, 48]
pad = 0
colour = "bgr"
scale = 255
mean = [0.5, 0.25, 0.125]
std = 0.5
layout = "nhwc"
"""
YAML = TOML.replace(" = ", ": ")
STEPS = "letterbox 32x48, pad 0, bgr, /255, mean 0.5 0.25 0.125, std 0.5, nhwc"


@pytest.mark.parametrize(("name", "content"), [("p.toml", TOML), ("p.yaml", YAML), ("p.yml", YAML)])
def test_a_file_means_what_its_steps_mean(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert understood(tmp_path / name) == parse(STEPS)


def test_a_file_may_leave_the_size_to_the_network(tmp_path):
    (tmp_path / "p.yaml").write_text("values: raw\n")
    assert understood(str(tmp_path / "p.yaml"), (1, 3, 8, 8)).frame == (8, 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("shrink: 3", "shrink = 3 is no step"),
        ("pad: [1, 2, 3]", "is no step"),
        ("mean: text", "is no step"),
        ("values: raw, bgr", "is no step"),
        ("{letterbox: 64, mean: [0.1, 0.2]}", "are not of 3 channels"),
        ("{}", "is no table of steps"),
        ("- 3", "no table"),
        ("a: [", "no YAML file"),
        ("!!python/object/apply:os.system ['false']", "no YAML file"),
        ("&a [" + "[" * 3000, "no YAML file"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, reason):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(BadInput, match=r"p\.yaml") as refused:
        understood(str(tmp_path / "p.yaml"))
    assert reason in refused.value.message


@pytest.fixture
def function(tmp_path):
    path = tmp_path / "own_way.py"
    path.write_text(
        "import numpy as np\n"
        "def half(picture):\n"
        "    return picture.transpose(2, 0, 1).astype(np.float32) / 2\n"
        "def fails(picture):\n"
        "    raise SystemExit(3)\n"
        "def nothing(picture):\n"
        "    return object()\n"
    )
    return f"{path}:half"


def test_a_function_is_imported_because_the_person_named_it(function):
    found = choose(function, None, FIXED)
    assert isinstance(found, OwnFunction)
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(found.sample(picture)[""], picture.transpose(2, 0, 1) / 2)


def test_a_function_that_a_file_records_is_never_imported(function):
    record = recorded(import_function(function))
    again = Provenance.loads(Provenance(preprocessing=record).dumps()).preprocessing
    assert again == record
    assert not isinstance(again, OwnFunction)
    before = set(sys.modules)
    with pytest.raises(BadInput, match="which only you may run") as refused:
        choose(None, again, FIXED)
    assert function in refused.value.hint
    assert set(sys.modules) == before


@pytest.mark.parametrize(("name", "message"), [("fails", "Exit: 3"), ("nothing", "no arrays")])
def test_a_function_that_fails_is_one_sentence(function, name, message):
    own = import_function(function.replace("half", name))
    with pytest.raises(BadInput, match=message):
        own.sample(np.zeros((2, 2, 3), np.uint8))


def test_records_of_earlier_versions_keep_their_meaning():
    old = '{"image_size": 32, "resize": 36, "mean": [0.5], "std": [0.25]}'
    data = f'{{"schema_version": 1, "model": null, "class_names": [], "preprocessing": {old}}}'
    found = Provenance.loads(data).preprocessing
    assert text_of(found) == "resize 36, crop 32, grey, /255, mean 0.5, std 0.25"
