"""`gradcam` tells of each picture what `evaluate` would, and draws it in its place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cbam_deploy import gradcam
from cbam_deploy.data import open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.explain.explanation import file_name, note_of
from cbam_deploy.explain.overlay import overlay, picture
from cbam_deploy.explain.result import Answer
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.runtimes import open_runtime

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def explained(digits_run, digits_onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradcam")
    same = Path(shutil.copy(digits_onnx, folder / "same.onnx"))
    return gradcam(
        str(digits_run / "best.safetensors"),
        folder / "out",
        data="digits",
        artefacts=[digits_onnx, same],
        images=5,
        seed=2,
    )


def test_probabilities_are_the_softmax_that_the_file_gives(explained, digits_onnx):
    source = open_source("digits", Preprocessing.for_size(16), split="test")
    batch = next(source.batches(5, limit=5, shuffle_seed=2))
    with open_runtime(digits_onnx) as runner:
        logits = runner.infer({"input": batch.images})["logits"].astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = softmax[np.arange(5), batch.labels]
    for row in (*explained.networks, *explained.artefacts):
        shown = [answer.probability for answer in row.answers]
        np.testing.assert_allclose(shown, expected, atol=1e-4)
        assert [int(answer.predicted) for answer in row.answers] == logits.argmax(1).tolist()
    assert explained.labels == tuple(str(label) for label in batch.labels)


def test_a_file_agrees_with_itself_in_every_gate(explained):
    assert len(explained.agreements) == 9
    assert all(entry.correlation > 0.999999 for entry in explained.agreements)
    assert all(entry.max_abs == 0 for entry in explained.agreements)


def test_the_page_holds_every_picture_and_loads_nothing(explained):
    page = Path(explained.page).read_text(encoding="utf-8")
    # Pictures and one row of Grad-CAM; for each of three map sizes, pictures and two files.
    assert page.count("data:image/png;base64") == 5 * 2 + 3 * 5 * 3
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    for number in (
        "resnet20 CBAM",
        "Attention of the deployed files",
        "layer3.2.gate",
        f"{explained.networks[0].answers[0].probability:.3f}",
    ):
        assert number in page
    assert len(explained.figures) == 4
    for figure in explained.figures:
        assert Path(figure).read_bytes().startswith(PNG)


def test_the_command_does_it_all(cli, digits_run, tmp_path):
    shown = cli(
        "gradcam",
        f"resnet20={digits_run / 'best.safetensors'}",
        *("--data", "digits", "-o", tmp_path / "out", "--images", "2", "--json"),
    )
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["networks"][0]["layer"] == "layer3"
    assert (tmp_path / "out" / "gradcam.png").is_file()


def test_a_wrong_answer_says_so_and_a_small_p_is_not_zero():
    assert note_of(Answer(0.97, "3", True)) == ("P = 0.97", False)
    assert note_of(Answer(0.2, "8", False)) == ("P = 0.20\nsays 8", True)
    assert note_of(Answer(0.001, "8", None)) == ("P < 0.01", False)


def test_the_name_of_a_gate_is_no_path(tmp_path):
    names = ["attention-node_mul", "attention-../../x", "attention-a\0b", "attention-a b"]
    files: list[Path] = []
    for name in (*names, "attention-" + "x" * 500):
        files.append(tmp_path / f"{file_name(name, files)}.png")
        files[-1].touch()
    assert len({*tmp_path.iterdir()}) == 5
    assert files[0].name == "attention-node_mul.png"


def test_pictures_are_what_preprocessing_began_with():
    preprocessing = Preprocessing.for_size(16)
    source = open_source("digits", preprocessing, split="test")
    image = next(source.batches(1)).images[0]
    shown = picture(image, preprocessing)
    assert shown.shape == (112, 112, 3)
    scaled = image * np.array(preprocessing.std)[:, None, None]
    scaled += np.array(preprocessing.mean)[:, None, None]
    assert np.abs(shown[::7, ::7].transpose(2, 0, 1) / 255 - scaled).max() < 0.51 / 255


def test_heat_is_red_where_it_is_largest_and_blue_where_it_is_least():
    grey = np.full((64, 64, 3), 128, np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 3] = 2.0
    shown = overlay(grey, heat, 0.0, 2.0).astype(int)
    assert shown[0, 63, 0] > shown[0, 63, 2]
    assert shown[63, 0, 2] > shown[63, 0, 0]
    assert (overlay(grey, np.ones((4, 4)), 1.0, 1.0) == shown[63, 0]).all()


def test_what_does_not_fit_together_is_refused(digits_run, tmp_path):
    weights = str(digits_run / "best.safetensors")

    def explain(*networks, **options):
        gradcam(networks, tmp_path / "out", **{"data": "digits", **options})

    with pytest.raises(BadInput, match="no network"):
        explain()
    with pytest.raises(BadInput, match="prepared differently"):
        explain(weights, "resnet20")
    with pytest.raises(BadInput, match="1000"):
        explain("resnet20")
    with pytest.raises(BadInput, match="no such"):
        explain(weights, artefacts=[tmp_path / "missing.onnx"])
    with pytest.raises(BadInput, match="no module 'layer7'"):
        explain(weights, layer="layer7")
    assert not (tmp_path / "out").exists()
