"""Classes are matched by name, however the name is written, and never by place."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.data.class_names import class_indices
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing

KNOWN = ("ananas", "école", "zebra", "Großer Ara", "ice_cream", "İstanbul")


def indices(*names: str, known: tuple[str, ...] = KNOWN) -> tuple[int, ...]:
    return class_indices(names, known, where="folder", of="net.onnx")


@pytest.mark.parametrize(
    ("written", "index"),
    [
        ("zebra", 2),
        ("ZEBRA", 2),
        (unicodedata.normalize("NFD", "école"), 1),
        (unicodedata.normalize("NFD", "ÉCOLE"), 1),
        (" ananas ", 0),
        ("GROSSER ARA", 3),
        ("großer_ara", 3),
        ("Ice-Cream", 4),
        ("ice cream", 4),
        (unicodedata.normalize("NFD", "İstanbul"), 5),
    ],
)
def test_a_name_means_its_class_however_it_is_written(written: str, index: int) -> None:
    assert indices(written) == (index,)


def test_a_subset_in_any_order_keeps_the_classes_own_indices() -> None:
    assert indices("Zebra", "ananas") == (2, 0)


def test_names_that_differ_in_case_alone_are_classes_of_their_own() -> None:
    assert indices("a", "A", "a_b", "a b", known=("A", "a", "a b", "a_b")) == (1, 0, 3, 2)


def test_a_name_that_could_mean_two_classes_means_none() -> None:
    with pytest.raises(BadInput, match="no class 'BAT'"):
        indices("BAT", known=("bat", "Bat"))
    with pytest.raises(BadInput, match="no class 'a-b'"):
        indices("a-b", known=("a b", "a_b"))


def test_what_does_not_match_is_listed_from_both_sides() -> None:
    with pytest.raises(BadInput) as caught:
        indices("zebra", "school", "pineapple", known=("ananas", "école", "zebra"))
    assert caught.value.message == (
        "folder: net.onnx has no class 'school', 'pineapple';"
        " its classes without a folder are 'ananas', 'école'"
    )


def test_two_folders_of_one_class_are_refused_not_added_up() -> None:
    with pytest.raises(BadInput, match=r"'zebra', 'Zebra' are one class of net\.onnx, 'zebra'"):
        indices("zebra", "Zebra")


def test_a_set_that_takes_over_classes_keeps_each_pictures_class() -> None:
    source = ImageSource(
        "validation",
        ["1.png", "2.png", "3.png"],
        lambda index: Image.new("RGB", (4, 4)),
        Preprocessing.for_size(4),
        np.array([0, 1, 1]),
        ("OWL", "cat"),
    )
    source.use_classes(("cat", "dog", "owl"), of="training")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 0]
    assert source.class_names == ("cat", "dog", "owl")
