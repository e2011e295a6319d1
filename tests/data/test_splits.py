"""Parts of a data set are found by the names in use, and never taken for classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cbam_deploy.data import ImageSource, open_source
from cbam_deploy.data.splits import find_parts, has_split, part_kind
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (200, 10, 10)).save(path, format="PNG")


def classes(root: Path) -> tuple[str, ...]:
    return source(root).class_names


def source(root: Path) -> ImageSource:
    return open_source(str(root), Preprocessing.for_size(4), split="train")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "val"),
        ("train", "test"),
        ("train", "valid"),
        ("train", "validation"),
        ("train", "dev"),
        ("Train", "VAL"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("Training Data", "Validation Data"),
        ("trainset", "testset"),
        ("TRAIN-IMAGES", "eval-images"),
        ("train2017", "val2017"),
        ("trainval", "test"),
        ("train_val", "hold-out"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("pets train", "pets test"),
    ],
)
def test_parts_go_by_the_usual_names(tmp_path: Path, train: str, held_out: str) -> None:
    put(tmp_path, *(f"{part}/{name}/1.png" for part in (train, held_out) for name in ("a", "b")))
    parts = find_parts(tmp_path)
    assert parts is not None
    assert (parts.train.name, parts.test and parts.test.name) == (train, held_out)
    assert has_split(tmp_path)
    assert classes(tmp_path) == ("a", "b")


def test_validation_comes_before_testing_and_the_plain_name_before_others(tmp_path: Path) -> None:
    for part in ("train", "train_old", "test", "valid", "my val"):
        put(tmp_path, f"{part}/a/1.png", f"{part}/b/1.png")
    parts = find_parts(tmp_path)
    assert parts is not None
    assert (parts.train.name, parts.test and parts.test.name) == ("train", "valid")


@pytest.mark.parametrize(
    "folders",
    [
        ("fold1", "fold2"),
        ("split_a", "split_b", "split_c"),
        ("5", "fold 6", "fold 7"),
        ("val", "test"),
        ("apprentissage", "validation"),
        ("images", "sketches"),
    ],
)
def test_parts_that_are_not_understood_are_not_classes(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    put(tmp_path, *(f"{folder}/{name}/1.png" for folder in folders for name in ("Cat", "dog")))
    put(tmp_path, f"{folders[-1]}/cat/2.png")
    with pytest.raises(BadInput, match="look like parts of a data set, not like classes") as caught:
        classes(tmp_path)
    assert "train and val" in caught.value.hint


def test_two_training_parts_are_one_too_many(tmp_path: Path) -> None:
    put(tmp_path, "train2014/a/1.png", "train2017/a/1.png", "val/a/1.png")
    with pytest.raises(BadInput, match="train2014 and train2017 both look like its part 'train'"):
        classes(tmp_path)


@pytest.mark.parametrize(
    "pictures",
    [
        ("valid/1.png", "invalid/1.png"),
        ("test/1.png", "control/1.png"),
        ("test/p1/1.png", "control/p2/1.png"),
        ("bus/front/1.png", "car/front/1.png", "train/front/1.png"),
        ("cat/2019/1.png", "cat/2020/1.png", "dog/2019/1.png", "dog/2020/1.png"),
        ("a/x/1.png", "b/x/1.png"),
        ("set/1.png", "match/1.png"),
        ("bullet train/1.png", "test car/1.png"),
    ],
    ids=lambda pictures: pictures[0],
)
def test_classes_that_are_called_like_parts_stay_classes(
    tmp_path: Path, pictures: tuple[str, ...]
) -> None:
    put(tmp_path, *pictures)
    assert classes(tmp_path) == tuple(sorted({name.split("/")[0] for name in pictures}))


@pytest.mark.parametrize("inside", ["train/", "images/", "data/train/", "images/train/"])
def test_a_part_that_is_all_there_is_is_the_set(tmp_path: Path, inside: str) -> None:
    put(tmp_path, f"{inside}cat/1.png", f"{inside}dog/2.png")
    (tmp_path / "labels").mkdir()
    assert classes(tmp_path) == ("cat", "dog")
    assert not has_split(tmp_path)


def test_parts_may_lie_in_a_folder_of_pictures(tmp_path: Path) -> None:
    put(tmp_path, *(f"images/{p}/{c}/1.png" for p in ("train", "val") for c in ("cat", "dog")))
    assert classes(tmp_path) == ("cat", "dog")
    assert len(source(tmp_path)) == 2
    assert has_split(tmp_path)


def test_a_name_of_no_part_has_no_kind() -> None:
    assert [part_kind(name) for name in ("strain", "contest", "invalid", "train_test", "")] == [
        None
    ] * 5
