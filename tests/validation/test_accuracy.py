"""Scores of classifiers: ranks, classes by name, and totals counted independently."""

import io
import json
import unicodedata

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from rich.console import Console

from cbam_deploy import evaluate
from cbam_deploy.data import open_source
from cbam_deploy.data.class_names import match_classes
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import METADATA_KEY, Provenance
from cbam_deploy.report.units import TOP1
from cbam_deploy.validation.accuracy_report import AccuracyReport, NetworkScore
from cbam_deploy.validation.metrics.metric import Reading, Score
from cbam_deploy.validation.metrics.top1 import ranks


def test_rank_counts_the_classes_before_the_right_one():
    logits = np.array([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [-1.0, -3.0, -2.0]])
    assert ranks(logits, np.array([1, 2, 2])).tolist() == [0, 2, 1]


def test_rank_zero_is_what_argmax_predicts_even_among_equals():
    logits = np.random.default_rng(0).integers(0, 3, (200, 5)).astype(np.float64)
    labels = np.random.default_rng(1).integers(0, 5, 200)
    np.testing.assert_array_equal(ranks(logits, labels) == 0, logits.argmax(axis=1) == labels)


def test_a_network_of_constant_logits_is_right_for_one_class_and_not_for_all():
    labels = np.arange(10)
    assert np.count_nonzero(ranks(np.zeros((10, 10)), labels) < 1) == 1
    assert np.count_nonzero(ranks(np.zeros((10, 10)), labels) < 5) == 5


def test_nan_predicts_nothing():
    logits = np.array([[np.nan, 0.0, 1.0, 2.0, 3.0, 4.0]])
    assert ranks(logits, np.array([5])).tolist() == [6]
    assert ranks(logits, np.array([0])).tolist() == [6]


def test_classes_are_matched_by_name_where_names_are_known():
    known = ("cat", "dog", "emu")
    assert match_classes("net", known, 3, ("dog", "emu"), "pictures").tolist() == [1, 2]
    assert match_classes("net", known, 3, ("emu", "cat", "dog"), "here").tolist() == [2, 0, 1]


def test_classes_are_matched_one_to_one_where_names_are_not_known():
    assert match_classes("net", (), 3, ("a", "b", "c"), "pictures").tolist() == [0, 1, 2]


def test_other_classes_are_refused():
    with pytest.raises(BadInput, match="2 classes, net tells 3 apart"):
        match_classes("net", (), 3, ("a", "b"), "pictures")
    # As many as the network has, and each of them another one.
    with pytest.raises(BadInput, match=r"no class 'a', 'b', 'c'.*'cat', 'dog', 'emu'"):
        match_classes("net", ("cat", "dog", "emu"), 3, ("a", "b", "c"), "pictures")
    with pytest.raises(BadInput, match="names of 2 classes and tells 3 apart"):
        match_classes("net", ("cat", "dog"), 3, ("cat", "dog"), "pictures")


def report(*top1, max_drop=None):
    networks = tuple(
        NetworkScore(
            name=f"{index}.onnx",
            runtime="cpu",
            score=Score((Reading("top1", TOP1, value),)),
            drop=top1[0] - value,
            disagreements=0,
            images_per_second=1.0,
            classes="by name",
        )
        for index, value in enumerate(top1)
    )
    return AccuracyReport("digits", 100, (), networks, max_drop, {})


def test_a_drop_fails_only_beyond_what_is_allowed():
    assert report(0.75, 0.5, max_drop=None).passed
    assert report(0.75, 0.5, max_drop=0.25).passed
    assert report(0.5, 0.75, max_drop=0.0).passed
    failed = report(0.75, 0.7, 0.25, max_drop=0.25)
    assert not failed.passed
    message, _ = failed.failure()
    assert message == "2.onnx: top-1 25.00% is 50.00 points below 0.onnx, 25.00 are allowed"


def predictions(path):
    """Logits and right class of every held-out digit, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    source = open_source("digits", Preprocessing.for_size(32), split="test")
    (batch,) = source.batches(1000)
    (logits,) = session.run(None, {"input": batch.images})
    return logits, batch.labels


def test_accuracy_is_what_counting_finds(network_onnx):
    logits, labels = predictions(network_onnx)
    order = np.argsort(-logits, axis=1)
    (network,) = evaluate(network_onnx, data="digits", batch_size=50).networks
    top1, top5 = (reading.value for reading in network.score.readings)
    assert top1 == network.value == np.mean(order[:, 0] == labels)
    assert top5 == np.mean((order[:, :5] == labels[:, None]).any(axis=1))
    assert network.images_per_second > 0


def test_networks_are_compared_picture_by_picture(network_onnx, with_weight):
    bias = onnx.load(network_onnx).graph.node[-1].input[2]
    one, labels = predictions(network_onnx)
    # Lifts a class above the predicted one for half of the pictures.
    second = np.bincount(np.argsort(-one, axis=1)[:, 1]).argmax()
    gaps = one.max(axis=1) - one[:, second]
    other = with_weight(bias, lambda array: array + np.median(gaps) * (np.arange(10) == second))
    report = evaluate([network_onnx, other], data="digits", pytorch=True)
    assert [network.name for network in report.networks] == [
        "pytorch",
        str(network_onnx),
        str(other),
    ]
    pytorch, same, changed = report.networks
    assert pytorch.runtime == "pytorch-cpu"
    assert (same.value, same.disagreements) == (pytorch.value, 0)
    two, _ = predictions(other)
    before, after = one.argmax(axis=1), two.argmax(axis=1)
    assert changed.disagreements == np.count_nonzero(before != after) > 0
    assert changed.drop == pytest.approx(np.mean(before == labels) - changed.value)


@pytest.fixture
def colours_onnx(tmp_path):
    """Takes 8 x 8 pictures, RGB in any dtype, and says which channel is strongest on average."""

    def save(dtype=onnx.TensorProto.FLOAT, class_names=("Red", "école", "blue")):
        picture = onnx.helper.make_tensor_value_info("image", dtype, ["batch", 3, 8, 8])
        logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
        axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
        nodes = [
            onnx.helper.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("ReduceMean", ["float", "axes"], ["logits"], keepdims=0),
        ]
        graph = onnx.helper.make_graph(nodes, "colours", [picture], [logits], [axes])
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
        )
        preprocessing = Preprocessing(8, 8, std=(0.2, 0.2, 0.2))
        provenance = Provenance(preprocessing=preprocessing, class_names=class_names)
        onnx.helper.set_model_props(model, {METADATA_KEY: provenance.dumps()})
        onnx.save(model, tmp_path / "colours.onnx")
        return tmp_path / "colours.onnx"

    return save


@pytest.fixture
def colours(tmp_path):
    """A folder of pictures whose strongest channel is the class, under the names given."""

    def save(red="Red", green="école", blue="blue"):
        root = tmp_path / "colours"
        for channel, name in enumerate((red, green, blue)):
            pixels = np.full((8, 8, 3), 40, np.uint8)
            pixels[..., channel] = 220
            (root / name).mkdir(parents=True)
            Image.fromarray(pixels).save(root / name / "1.png")
        return str(root)

    return save


@pytest.mark.parametrize(
    "names", [{}, {"red": "red", "blue": "Blue"}, {"green": unicodedata.normalize("NFD", "école")}]
)
def test_accuracy_does_not_depend_on_how_folders_are_sorted(colours_onnx, colours, names):
    report = evaluate(colours_onnx(), data=colours(**names))
    assert report.networks[0].value == 1.0
    assert report.networks[0].classes == "by name"


@pytest.mark.parametrize("dtype", ["UINT8", "INT16", "INT32", "INT64", "FLOAT16", "DOUBLE"])
def test_integer_inputs_get_levels_of_0_to_255_and_floats_normalized_values(
    colours_onnx, colours, dtype
):
    # Cast to integers, normalized values would be 0, or wrap to 255 below it.
    path = colours_onnx(getattr(onnx.TensorProto, dtype))
    assert evaluate(path, data=colours()).networks[0].value == 1.0


def test_a_type_that_cannot_hold_a_picture_is_refused(colours_onnx, colours):
    with pytest.raises(BadInput, match="input image takes int8, which cannot hold"):
        evaluate(colours_onnx(onnx.TensorProto.INT8), data=colours())


def test_networks_that_agree_do_so_in_whatever_order_their_classes_are(colours_onnx, colours):
    first = colours_onnx()
    second = first.with_name("turned.onnx")
    model = onnx.load(first)
    turn = onnx.helper.make_node("Gather", ["logits", "order"], ["turned"], axis=1)
    model.graph.node.append(turn)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 0, 1]), "order"))
    model.graph.output[0].name = "turned"
    names = ("BLUE", "red", "École")
    recorded = Provenance(preprocessing=Preprocessing(8, 8, std=(0.2,) * 3), class_names=names)
    onnx.helper.set_model_props(model, {METADATA_KEY: recorded.dumps()})
    onnx.save(model, second)
    report = evaluate([first, second], data=colours())
    assert [network.value for network in report.networks] == [1.0, 1.0]
    assert [network.disagreements for network in report.networks] == [0, 0]


def test_a_translated_folder_is_refused(colours_onnx, colours):
    with pytest.raises(BadInput, match=r"has no class 'school'; .* 'école'"):
        evaluate(colours_onnx(), data=colours(green="school"))


def test_a_fixed_batch_scores_every_picture_once(network_onnx, altered):
    def fix(model):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 7

    report = evaluate([network_onnx, altered(fix)], data="digits", batch_size=16)
    assert report.images == 355
    free, fixed = report.networks
    assert (fixed.score, fixed.disagreements) == (free.score, 0)


def test_a_limit_takes_the_same_mixed_pictures_each_time(network_onnx):
    reports = [evaluate(network_onnx, data="digits", limit=40) for _ in range(2)]
    assert reports[0].images == 40
    assert reports[0].networks[0].value == reports[1].networks[0].value


def test_pictures_without_labels_are_refused(network_onnx):
    with pytest.raises(BadInput, match="photos: has no labels"):
        evaluate(network_onnx, data="photos")


def test_a_network_of_other_classes_is_refused(network_onnx, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "1.png")
    with pytest.raises(BadInput, match=r"2 classes.*tells 10 apart"):
        evaluate(network_onnx, data=str(tmp_path))


def test_a_bound_on_the_drop_needs_a_baseline(network_onnx):
    with pytest.raises(BadInput, match="nothing to drop below"):
        evaluate(network_onnx, data="digits", max_drop=0.01)


def test_a_network_that_is_no_classifier_is_refused(altered):
    def return_a_map(model):
        value = model.graph.node[0].output[0]
        shape = ["batch", 16, 32, 32]
        info = onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shape)
        model.graph.output[0].CopyFrom(info)

    with pytest.raises(BadInput, match="no classifier"):
        evaluate(altered(return_a_map), data="digits")


def test_the_report_is_json_and_a_table(network_onnx):
    report = evaluate([network_onnx, network_onnx], data="digits", limit=10)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [network["name"] for network in data["networks"]] == [str(network_onnx)] * 2
    text = io.StringIO()
    Console(width=200, file=text).print(report)
    assert "10 pictures of digits; classes matched by order" in text.getvalue()
    assert "+0.00" in text.getvalue()


@pytest.mark.slow
def test_a_damaged_classifier_falls_below_the_trained_one(digits_onnx, tmp_path):
    model = onnx.load(digits_onnx)
    (bias,) = (t for t in model.graph.initializer if t.name == model.graph.node[-1].input[2])
    array = onnx.numpy_helper.to_array(bias) + np.float32(100) * (np.arange(10) == 3)
    bias.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), bias.name))
    onnx.save(model, tmp_path / "threes.onnx")
    report = evaluate([digits_onnx, tmp_path / "threes.onnx"], data="digits", max_drop=0.005)
    trained, threes = report.networks
    assert trained.value > 0.98
    # It calls every digit a three: 36 of the 355 are.
    assert threes.value == pytest.approx(36 / 355, abs=1 / 355)
    assert not report.passed
    assert "points below" in report.failure()[0]
