"""Mean IoU: pixels counted one by one, masks that do not fit, and INT8 within a budget."""

import json
import math

import numpy as np
import onnx
import pytest
from judged import SIZE, save_network, save_picture
from PIL import Image

from cbam_deploy import convert, evaluate
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing

CLASSES = 3
COLOURS = np.eye(3)


@pytest.fixture
def network(tmp_path):
    """Scores are red, green and blue of the picture as the network sees it."""

    def save(name="net.onnx", body="y = Conv (image, w)", side=SIZE, w=COLOURS, **options):
        weights = {"w": np.asarray(w, np.float32)[:, :, None, None]}
        type_of = f"float[batch, {len(w)}, {side}, {side}] y"
        return save_network(tmp_path / name, body, type_of, **options, **weights)

    return save


@pytest.fixture
def streets(tmp_path):
    """Pictures of noise with random masks, a tenth of their pixels ignored."""

    def save(height=SIZE, width=SIZE, count=3):
        random = np.random.default_rng(height * width)
        masks = random.choice([0, 1, 2, 255], (count, height, width), p=[0.5, 0.3, 0.1, 0.1])
        pictures = random.integers(0, 256, (count, height, width, 3), np.uint8)
        for number in range(count):
            save_picture(tmp_path / "set" / "images" / "a" / f"{number}.png", pictures[number])
            save_picture(tmp_path / "set" / "masks" / "a" / f"{number}.png", masks[number])
        return tmp_path / "set", pictures, masks

    return save


def counted(predictions, masks):
    """IoU of each class by looking at each pixel, None for one that is nowhere."""
    shared, either = [0] * CLASSES, [0] * CLASSES
    for predicted, true in zip(np.ravel(predictions), np.ravel(masks), strict=True):
        for kind in range(CLASSES):
            if true != 255 and kind in (predicted, true):
                either[kind] += 1
                shared[kind] += predicted == true
    return [shared[k] / either[k] if either[k] else None for k in range(CLASSES)]


def judged(network, data, **options):
    return evaluate(network, data=str(data), metric="miou", **options)


def test_every_pixel_counts_once_over_all_pictures_but_the_ignored_ones(network, streets):
    data, pictures, masks = streets()
    expected = counted(pictures.argmax(axis=-1), masks)
    report = judged(network(), data, batch_size=2)
    (found,) = report.networks
    assert list(found.score.per_class.values()) == pytest.approx(expected)
    assert found.value == pytest.approx(sum(expected) / CLASSES)
    (row,) = json.loads(json.dumps(report.to_json()))["networks"]
    assert row["miou"] == found.value
    assert row["per_class"][2] == {"class": "class 2", "value": pytest.approx(expected[2])}


def test_masks_are_found_beside_a_folder_called_images(network, streets):
    data, *_ = streets()
    inside = judged(network(), data / "images" / "a").networks[0]
    assert inside.value == judged(network(), data).networks[0].value


def test_a_class_that_is_nowhere_does_not_count(network, streets, tmp_path):
    save_picture(tmp_path / "one" / "images" / "1.png", np.full((SIZE, SIZE, 3), (200, 0, 0)))
    save_picture(tmp_path / "one" / "masks" / "1.png", np.zeros((SIZE, SIZE)))
    (found,) = judged(network(class_names=("road", "sky", "tree")), tmp_path / "one").networks
    assert found.score.per_class == {"road": 1.0, "sky": None, "tree": None}
    assert found.value == 1.0


def bilinear(scores, height, width):
    """Scores [C, h, w] at the middles of height x width pixels, in plain Python."""
    found = np.zeros((len(scores), height, width))
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * scores.shape[1] / height - 0.5, 0), scores.shape[1] - 1)
            x = min(max((column + 0.5) * scores.shape[2] / width - 0.5, 0), scores.shape[2] - 1)
            for i, v in (
                (math.floor(y), 1 - y % 1),
                (min(math.floor(y) + 1, len(scores[0]) - 1), y % 1),
            ):
                for j, u in (
                    (math.floor(x), 1 - x % 1),
                    (min(math.floor(x) + 1, scores.shape[2] - 1), x % 1),
                ):
                    found[:, row, column] += v * u * scores[:, i, j]
    return found


def test_coarse_scores_are_interpolated_to_the_mask(network, streets):
    data, pictures, masks = streets()
    pool = "pooled = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (image)"
    pooled = (
        pictures.astype(np.float64).reshape(3, 4, 4, 4, 4, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    )
    predicted = [bilinear(one, SIZE, SIZE).argmax(0) for one in pooled]
    (found,) = judged(network(body=f"{pool} y = Conv (pooled, w)", side=4), data).networks
    assert list(found.score.per_class.values()) == pytest.approx(counted(predicted, masks))


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
def test_scores_go_back_to_where_the_picture_lay(network, tmp_path, fit):
    """A long picture, red on the left and blue on the right: its mask is met but at the border."""
    height, width = 24, 48
    half = np.arange(width) < width // 2
    pixels = np.where(half[None, :, None], (250, 0, 0), (0, 0, 250)) * np.ones((height, 1, 1))
    save_picture(tmp_path / "long" / "images" / "1.png", pixels)
    save_picture(tmp_path / "long" / "masks" / "1.png", np.where(half, 0, 2) * np.ones((height, 1)))
    shown = Preprocessing(SIZE, SIZE, mean=(0, 0, 0), std=(1, 1, 1), fit=fit)
    (found,) = judged(network(preprocessing=shown), tmp_path / "long").networks
    assert found.score.per_class["class 1"] is None
    assert found.value > 0.9


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((SIZE, SIZE), 3), r"masks/a/1\.png: has class 3, and .* tells 3 apart"),
        (np.zeros((SIZE, SIZE, 3)), r"masks/a/1\.png: has pixels of mode RGB"),
        (np.zeros((SIZE, 8)), r"masks/a/1\.png: is 8x16, its picture .* is 16x16"),
        (None, r"masks/a/1\.png: no such mask"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(network, streets, mask, message):
    data, *_ = streets()
    path = data / "masks" / "a" / "1.png"
    path.unlink() if mask is None else save_picture(path, mask)
    with pytest.raises(BadInput, match=message):
        judged(network(), data)


def test_pictures_without_masks_and_networks_without_scores_are_refused(cli, network, tmp_path):
    save_picture(tmp_path / "bare" / "1.png", np.zeros((SIZE, SIZE, 3)))
    shown = cli("evaluate", network(), "--data", tmp_path / "bare", "--metric", "miou")
    assert shown.code == 2
    assert shown.error == f"{tmp_path}/bare: has no folder 'masks' beside its pictures"
    save_picture(tmp_path / "masks" / "1.png", np.zeros((SIZE, SIZE)))
    flat = save_network(tmp_path / "flat.onnx", "y = Flatten (image)", "float[batch, 768] y")
    with pytest.raises(BadInput, match=r"gives no scores .* but y \['batch', 768\]"):
        judged(flat, tmp_path / "bare")


def test_int8_keeps_to_a_budget_of_mean_iou(network, streets, tmp_path):
    """One channel a thousand times larger than the others leaves these no levels of INT8."""
    data, *_ = streets()
    body = "wide = Conv (image, w) y = Conv (wide, back)"
    path = network("wide.onnx", body=body, w=np.diag([1.0, 1.0, 1000.0]))
    model = onnx.load(path)
    back = np.diag([1.0, 1.0, 0.001]).astype(np.float32)[:, :, None, None]
    model.graph.initializer.append(onnx.numpy_helper.from_array(back, "back"))
    onnx.save(model, path)
    result = convert(
        path,
        tmp_path / "int8.onnx",
        precision="int8+fp32",
        calibration=str(data / "images" / "a"),
        method="minmax",
        images=3,
        max_accuracy_drop=0.05,
        data=str(data),
        metric="miou",
    )
    before, after = judged([path, tmp_path / "int8.onnx"], data).networks
    assert result.budget.baseline == before.value
    assert result.budget.steps[0].accuracy < before.value - 0.05
    assert result.budget.steps[-1].accuracy == after.value >= before.value - 0.05
    assert result.budget.given_back == ("y",)
    assert "mIoU" in result.budget.sections()[0].tables[0].columns


def test_masks_with_a_palette_are_read_as_indices(network, streets):
    data, pictures, masks = streets()
    image = Image.fromarray(masks[1].astype(np.uint8)).convert("P")
    image.putdata(masks[1].astype(np.uint8).ravel().tolist())
    image.save(data / "masks" / "a" / "1.png")
    (found,) = judged(network(), data).networks
    expected = counted(pictures.argmax(axis=-1), masks)
    assert list(found.score.per_class.values()) == pytest.approx(expected)
