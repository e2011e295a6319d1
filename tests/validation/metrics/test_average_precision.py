"""mAP of detectors: cases whose answer is known by hand, forms of boxes, what is refused."""

import json
import sys

import numpy as np
import pytest
from judged import AS_IT_IS, SIZE, save_network, save_picture

from cbam_deploy import convert, evaluate
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.report.html import write_page
from cbam_deploy.validation.metrics.detections import detector_outputs, without_duplicates

CLASSES = ("circle", "square")
PLACES = 8
# Of COCO's 101 recalls, those up to a half and up to a third.
HALF, THIRD = 51 / 101, 34 / 101


def table(*found):
    """What a head says, [6, PLACES]: boxes x, y, w, h, class and score at the first places."""
    rows = np.zeros((4 + len(CLASSES), PLACES), np.float32)
    for place, (x, y, w, h, kind, score) in enumerate(found):
        rows[:4, place] = x, y, w, h
        rows[4 + kind, place] = score
    return rows[None]


@pytest.fixture
def detector(tmp_path):
    """Finds the same in every picture, whose pixels it looks at and does not mind."""

    def save(*found, name="net.onnx", preprocessing=AS_IT_IS, class_names=CLASSES):
        body = """pooled = AveragePool <kernel_shape = [16, 16]> (image) seen = Conv (pooled, w)
        flat = Squeeze (seen, last) nothing = Mul (flat, zero) y = Add (nothing, table)"""
        weights = {
            "w": np.ones((1, 3, 1, 1), np.float32),
            "last": np.array([3]),
            "zero": np.float32(0),
            "table": table(*found),
        }
        type_of = f"float[batch, {4 + len(CLASSES)}, {PLACES}] y"
        return save_network(tmp_path / name, body, type_of, preprocessing, class_names, **weights)

    return save


@pytest.fixture
def shapes(tmp_path):
    """A folder of pictures with YOLO's labels: class and x, y, w, h in pixels for each object."""

    def save(*pictures, size=(SIZE, SIZE), names=None):
        root = tmp_path / "set"
        (root / "labels").mkdir(parents=True)
        for number, objects in enumerate(pictures):
            save_picture(root / "images" / f"{number}.png", np.zeros((*size[::-1], 3)))
            lines = [
                f"{kind} {x / size[0]} {y / size[1]} {w / size[0]} {h / size[1]}"
                for kind, x, y, w, h in objects
            ]
            if lines:
                (root / "labels" / f"{number}.txt").write_text("\n".join(lines))
        if names:
            (root / "classes.txt").write_text("\n".join(names))
        return root

    return save


def judged(network, data, metric="map", **options):
    return evaluate(network, data=str(data), metric=metric, **options)


def figures(report):
    (network,) = report.networks
    return tuple(reading.value for reading in network.score.readings)


def test_what_is_found_exactly_counts_at_every_overlap(detector, shapes):
    data = shapes([(0, 4, 4, 4, 4), (1, 10, 10, 6, 4)])
    both = detector((4, 4, 4, 4, 0, 0.9), (10, 10, 6, 4, 1, 0.8))
    assert figures(judged(both, data)) == (pytest.approx(1), pytest.approx(1))


def test_half_of_the_objects_is_half_of_the_recalls(detector, shapes):
    data = shapes([(0, 4, 4, 4, 4), (0, 12, 12, 4, 4)])
    one = detector((4, 4, 4, 4, 0, 0.9))
    assert figures(judged(one, data)) == (pytest.approx(HALF), pytest.approx(HALF))


def test_a_surer_wrong_box_halves_the_precision(detector, shapes):
    data = shapes([(0, 4, 4, 4, 4)])
    found = detector((12, 12, 2, 2, 0, 0.9), (4, 4, 4, 4, 0, 0.6))
    assert figures(judged(found, data)) == (pytest.approx(0.5), pytest.approx(0.5))


def test_a_box_counts_up_to_the_overlap_it_has(detector, shapes):
    # 8 x 5 within 8 x 8: IoU 0.625, which three of COCO's ten thresholds allow.
    report = judged(detector((8, 6.5, 8, 5, 0, 0.9)), shapes([(0, 8, 8, 8, 8)]))
    assert figures(report) == (pytest.approx(0.3), pytest.approx(1))


def test_classes_are_judged_each_for_itself_and_one_without_objects_does_not_count(
    detector, shapes
):
    data = shapes([(0, 4, 4, 4, 4), (0, 12, 4, 4, 4)], [(0, 8, 8, 6, 6)], [])
    # In every picture: one of three circles is here, and no square is.
    report = judged(detector((8, 8, 6, 6, 0, 0.9), (4, 12, 4, 4, 1, 0.9)), data)
    (network,) = report.networks
    assert report.images == 3
    # The pictures are alike to the network: of three boxes of one score the second is right.
    assert network.score.per_class == {"circle": pytest.approx(THIRD / 2), "square": None}
    (row,) = json.loads(json.dumps(report.to_json()))["networks"]
    assert row["map"] == row["map50"] == network.value == pytest.approx(THIRD / 2)
    assert row["per_class"][1] == {"class": "square", "value": None}


def test_the_same_object_found_twice_is_found_once():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [0, 0, 10, 8.0]])
    # Of the first, the second is 0.8, the third 0.6; the last is of another class.
    kept = without_duplicates(boxes, np.array([0, 0, 0, 1]))
    assert kept.tolist() == [0, 2, 3]


def test_boxes_of_corners_and_in_an_output_of_their_own_are_the_same(detector, shapes, tmp_path):
    data = shapes([(0, 4, 4, 4, 4), (1, 10, 10, 6, 4)])
    found = table((4, 4, 4, 4, 0, 0.9), (10, 9, 6, 6, 1, 0.8))[0].T
    expected = figures(judged(detector((4, 4, 4, 4, 0, 0.9), (10, 9, 6, 6, 1, 0.8)), data))
    assert expected[0] == pytest.approx((1 + 0.4) / 2)  # 24 of 36: up to 0.65.
    corners = np.hstack([found[:, :2] - found[:, 2:4] / 2, found[:, :2] + found[:, 2:4] / 2])
    body = """pooled = AveragePool <kernel_shape = [16, 16]> (image)
    sum = ReduceSum (pooled, axes) nothing = Mul (sum, zero) flat = Squeeze (nothing, last)
    scores = Add (flat, s) boxes = Add (flat, b)"""
    types = f"float[batch, {PLACES}, {len(CLASSES)}] scores, float[batch, {PLACES}, 4] boxes"
    for metric, boxes in (("map", found[:, :4]), ("map-xyxy", corners)):
        path = save_network(
            tmp_path / "two.onnx",
            body,
            types,
            axes=np.array([1]),
            zero=np.float32(0),
            last=np.array([3]),
            s=found[:, 4:].copy(),
            b=boxes.astype(np.float32),
        )
        assert figures(judged(path, data, metric)) == expected


@pytest.mark.parametrize(
    ("fit", "box"),
    [
        ("stretch", (8, 8, 8, 8)),
        # 32 x 16 becomes 16 x 8, below 4 rows of padding.
        ("letterbox", (8, 8, 8, 4)),
        # Of 32 x 16 the middle 16 x 16, where the object is cut off.
        ("crop", (8, 8, 16, 8)),
    ],
)
def test_boxes_go_back_to_where_the_picture_lay(detector, shapes, fit, box):
    data = shapes([(0, 16, 8, 16, 8)], size=(32, 16))
    shown = Preprocessing(SIZE, SIZE, mean=(0, 0, 0), std=(1, 1, 1), fit=fit)
    report = judged(detector((*box, 0, 0.9), preprocessing=shown), data)
    assert figures(report) == (pytest.approx(1), pytest.approx(1))
    assert bool(report.notes) == (fit == "crop")


def coco(tmp_path, *, file_name="1.png", categories=((7, "square"), (3, "circle")), **more):
    save_picture(tmp_path / "coco" / "val2017" / "1.png", np.zeros((SIZE, SIZE, 3)))
    objects = [{"image_id": 9, "category_id": 3, "bbox": [2, 2, 4, 4], "iscrowd": 0}]
    data = {
        "info": {"year": 2017},
        "images": [{"id": 9, "file_name": file_name, "width": SIZE, "height": SIZE}],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [{"id": 1, "area": 16, **one} for one in objects],
    }
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**data, **more}))
    return path


def test_a_coco_file_names_pictures_and_classes(detector, tmp_path):
    path = coco(tmp_path)
    # By the network's own names, which are in another order; by the order of categories without.
    named = detector((4, 4, 4, 4, 1, 0.9), class_names=("square", "circle"))
    assert figures(judged(named, path)) == (pytest.approx(1), pytest.approx(1))
    unnamed = detector((4, 4, 4, 4, 0, 0.9), class_names=())
    report = judged(unnamed, path.parents[1])
    assert figures(report) == (pytest.approx(1), pytest.approx(1))
    assert report.networks[0].classes == "by order"


def test_a_coco_file_leads_to_no_picture_outside_its_data_set(detector, tmp_path):
    save_picture(tmp_path / "secret.png", np.zeros((SIZE, SIZE, 3)))
    for name in ("../../secret.png", str(tmp_path / "secret.png"), "..\\secret.png"):
        with pytest.raises(BadInput, match="does not lie below the data set"):
            judged(detector(), coco(tmp_path, file_name=name))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"annotations": None}, r"is no COCO file of objects .*annotations"),
        ({"categories": []}, "is of category 3 in image 9, which the file does not list"),
        ({"file_name": "2.png"}, r"lists the picture '2\.png', which does not lie beside it"),
        ({"file_name": "a" * 300}, "names the picture 'a+'…"),
        ({"categories": [(3, "cube")]}, "has no class 'cube'"),
    ],
)
def test_a_coco_file_that_does_not_fit_is_named(detector, tmp_path, more, message):
    with pytest.raises(BadInput, match=message):
        judged(detector((4, 4, 4, 4, 0, 0.9)), coco(tmp_path, **more))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"0\.txt: has class 2, and there are 2"),
        ("0 8 8 4 4", r"0\.txt: object 1 reaches beyond 0 to 1"),
        ("0 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.2 0.1 0.2 0.2", "object 2 has 7 numbers, not 5"),
        ("circle 0.5 0.5 0.1 0.1", "object 1 is 'circle 0.5 0.5 0.1 0.1', not numbers"),
        ("0.5 0.5 0.5 0.1 0.1", r"object 1 is of class 0\.5"),
        ("nan 0.5 0.5 0.1 0.1", "object 1 is of class nan"),
        ("inf 0.5 0.5 0.1 0.1", "object 1 is of class inf"),
        ("1e30 0.5 0.5 0.1 0.1", r"object 1 is of class 1e\+30"),
        ("", "has no objects to find"),
    ],
)
def test_a_label_that_does_not_fit_is_named(detector, shapes, text, message):
    data = shapes([(0, 4, 4, 4, 4)])
    (data / "labels" / "0.txt").write_text(text)
    with pytest.raises(BadInput, match=message):
        judged(detector((4, 4, 4, 4, 0, 0.9)), data)


def test_pictures_without_labels_are_refused_with_the_place_where_they_belong(
    cli, detector, shapes
):
    data = shapes([])
    shown = cli("evaluate", detector(), "--data", data, "--metric", "map")
    assert shown.code == 2
    assert shown.error == f"{data}/labels: has no labels of the pictures in {data}/images"
    assert f"{data}/labels/0.txt says what lies in" in shown.err


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((4, 4, 4, 4, 0, 3.0), "has scores from 0 to 3, not between 0 and 1"),
        ((0.3, 0.3, 0.3, 0.3, 0, 0.9), r"has no box beyond 0\.45, as if in parts of the picture"),
    ],
)
def test_outputs_of_another_meaning_are_refused(detector, shapes, found, message):
    with pytest.raises(BadInput, match=message):
        judged(detector(found), shapes([(0, 4, 4, 4, 4)]))


@pytest.mark.parametrize("shape", [(1, 300, 6), (1, 7, 10, 10), (1, 4, 100), (1, 100, 4)])
def test_a_network_without_boxes_is_refused(shapes, tmp_path, shape):
    path = save_network(
        tmp_path / "other.onnx",
        "all = ReduceSum <keepdims = 0> (image) y = Expand (all, size)",
        f"float[{', '.join(map(str, shape))}] y",
        size=np.array(shape),
    )
    with pytest.raises(BadInput, match="gives no boxes but y"):
        judged(path, shapes([(0, 4, 4, 4, 4)]))


@pytest.mark.parametrize("beside", [(1, 6, 20, 20), (1, 400, 6)])
def test_one_output_of_several_is_judged(beside):
    outputs = [TensorSpec("maps", beside, "float32"), TensorSpec("found", (1, 6, 400), "float32")]
    for order in (outputs, outputs[::-1]):
        found = detector_outputs("net", order, corners=False)
        assert (found.boxes, found.scores) == ("found", "found")


def test_without_the_package_that_computes_it_the_hint_says_which(detector, shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "pycocotools.cocoeval", raising=False)
    with pytest.raises(MissingCapability, match="needs pycocotools") as refused:
        judged(detector(), shapes([(0, 4, 4, 4, 4)]))
    assert "[detection]" in refused.value.hint


def test_int8_keeps_to_a_budget_of_map(detector, shapes, tmp_path):
    data = shapes([(0, 4, 4, 4, 4), (0, 12, 12, 4, 4)])
    path = detector((4, 4, 4, 4, 0, 0.9))
    result = convert(
        path,
        tmp_path / "int8.onnx",
        precision="int8+fp32",
        calibration=str(data / "images"),
        images=1,
        max_accuracy_drop=0.005,
        data=str(data),
        metric="map",
    )
    assert result.budget.baseline == result.budget.steps[-1].accuracy == pytest.approx(HALF)
    assert result.budget.unit.label == "mAP"


def test_the_page_shows_pictures_with_boxes_and_each_class(detector, shapes, tmp_path):
    data = shapes([(0, 4, 4, 4, 4), (1, 10, 10, 6, 4)])
    good = detector((4, 4, 4, 4, 0, 0.9), (10, 10, 6, 4, 1, 0.8))
    bad = detector((4, 4, 4, 4, 0, 0.9), name="bad.onnx")
    report = judged([good, bad], data, max_drop=0.1)
    assert not report.passed
    assert "mAP 50.00% is 50.00 points below" in report.failure()[0]
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<image") == 3  # The objects, and what each network finds.
    assert "mAP of each class" in page
