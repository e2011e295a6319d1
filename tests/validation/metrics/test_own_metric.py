"""A function of the person's own as metric: what it gets, what it may return, how it is shown."""

import io

import numpy as np
import pytest
from judged import SIZE, save_network, save_picture
from rich.console import Console

from cbam_deploy import convert, evaluate
from cbam_deploy.errors import BadInput

CODE = """
import numpy as np

def brightness(outputs, targets):
    assert set(outputs) == {"y"} and outputs["y"].shape == (4, 3, 1, 1)
    assert targets.dtype == np.int64
    return float(outputs["y"][targets == 1].mean() * 100)

def by_name(outputs, targets):
    return sum(int(name[-5]) for name in targets)

def fails(outputs, targets):
    raise ValueError("no such\\nthing")

def nothing(outputs, targets):
    return float("nan")

number = 3
"""


@pytest.fixture
def network(tmp_path):
    """The mean of each channel, times two where asked."""

    def save(name="net.onnx", times=1.0):
        return save_network(
            tmp_path / name,
            "seen = Conv (image, w) y = AveragePool <kernel_shape = [16, 16]> (seen)",
            "float[batch, 3, 1, 1] y",
            w=times * np.eye(3, dtype=np.float32)[:, :, None, None],
        )

    return save


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    return lambda function: f"{tmp_path}/own.py:{function}"


@pytest.fixture
def pictures(tmp_path):
    """Four grey pictures of levels 10 to 40, two of each class."""
    for number in range(4):
        level = 10 * (number + 1)
        path = tmp_path / "set" / "ab"[number // 2] / f"{number}.png"
        save_picture(path, np.full((SIZE, SIZE, 3), level))
    return tmp_path / "set"


def test_it_gets_all_outputs_with_the_labels_and_is_no_percentage(network, own, pictures):
    report = evaluate(
        [network(), network("twice.onnx", 2.0)],
        data=str(pictures),
        metric=own("brightness"),
        batch_size=3,
        max_drop=2.0,
    )
    once, twice = report.networks
    assert once.value == pytest.approx(100 * 35 / 255, rel=1e-6)
    assert twice.drop == pytest.approx(-100 * 35 / 255, rel=1e-6)
    assert report.to_json()["networks"][0]["value"] == once.value
    shown = io.StringIO()
    Console(width=200, file=shown).print(report)
    assert "13.73" in shown.getvalue()
    assert "+13.7" in shown.getvalue()
    assert "%" not in shown.getvalue()


def test_a_fall_beyond_the_bound_fails_in_its_own_unit(cli, network, own, pictures):
    line = ("--data", pictures, "--metric", own("brightness"), "--max-drop", "2")
    shown = cli("evaluate", network("twice.onnx", 2.0), network(), *line)
    assert shown.code == 1
    assert "value 13.73 is 13.7 below" in shown.err


def test_pictures_without_labels_come_by_name(network, own, pictures):
    data = str(pictures / "b")
    (found,) = evaluate(network(), data=data, metric=own("by_name")).networks
    assert found.value == 2 + 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"own\.py:fails: judging .*net\.onnx failed \(ValueError: no such thing\)"),
        ("nothing", r"says nan of .*net\.onnx"),
        ("number", "is a int, not a callable"),
        ("other", r"own\.py has no 'other'"),
    ],
)
def test_what_is_wrong_with_it_is_one_sentence(network, own, pictures, function, message):
    with pytest.raises(BadInput, match=message):
        evaluate(network(), data=str(pictures), metric=own(function))


def test_an_unknown_metric_and_a_drop_of_more_than_all_are_refused(cli, network, pictures):
    path = network()
    shown = cli("evaluate", path, "--data", pictures, "--metric", "f1")
    assert (shown.code, shown.error) == (2, "metric 'f1' is unknown")
    shown = cli("evaluate", path, path, "--data", pictures, "--max-drop", "5")
    assert shown.code == 2
    assert "a drop in top-1 of 500.00% is not between" in shown.error


def test_int8_keeps_to_a_budget_in_its_unit(network, own, pictures, tmp_path):
    result = convert(
        network(),
        tmp_path / "int8.onnx",
        precision="int8+fp32",
        calibration=str(pictures),
        images=4,
        max_accuracy_drop=1.5,
        data=str(pictures),
        metric=own("brightness"),
    )
    assert result.budget.baseline == pytest.approx(100 * 35 / 255, rel=1e-6)
    assert result.budget.passed
    rows = result.budget.sections()[0].tables[0].rows
    assert rows[0] == ("(float32)", "13.73", "")
