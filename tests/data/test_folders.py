"""Folders of pictures: which count, which labels they get, what is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbam_deploy.data import ImageSource, open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import Preprocessing


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (200, 10, 10)).save(path, format="PNG")


def opened(root: Path, split: str = "all") -> ImageSource:
    return open_source(str(root), Preprocessing.for_size(4), split=split)


def labelled(source: ImageSource, root: Path) -> dict[str, str]:
    assert source.labels is not None
    return {
        str(Path(name).relative_to(root)): source.class_names[label]
        for name, label in zip(source.names, source.labels, strict=True)
    }


def test_class_folders_give_labels_in_the_order_of_names(tmp_path: Path) -> None:
    put(tmp_path, "dog/1.png", "cat/b.JPG", "cat/deep/er/a.webp", "dog/2.Jpeg")
    (tmp_path / "bird").mkdir()  # Empty, yet an output of the network.
    (tmp_path / "cat/readme.txt").write_text("no picture")
    source = opened(tmp_path)
    assert source.class_names == ("bird", "cat", "dog")
    assert labelled(source, tmp_path) == {
        "cat/b.JPG": "cat",
        "cat/deep/er/a.webp": "cat",
        "dog/1.png": "dog",
        "dog/2.Jpeg": "dog",
    }
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    batch = next(source.batches(8))
    assert batch.images.shape == (4, 3, 4, 4)


@pytest.mark.parametrize("targets", ["masks", "labels", "annotations"])
def test_pictures_with_targets_beside_them_are_those_in_images(
    tmp_path: Path, targets: str
) -> None:
    put(tmp_path, "images/1.png", "images/2.png", f"{targets}/1.png")
    source = opened(tmp_path)
    assert source.labels is None
    assert [Path(name).name for name in source.names] == ["1.png", "2.png"]
    # Of parts, each has its own; and folders of these names may be classes elsewhere.
    put(tmp_path / "parts", f"train/{targets}/1.png", "train/images/1.png", "val/images/2.png")
    (tmp_path / "parts" / "val" / targets).mkdir()
    for split, name in (("train", "train/images/1.png"), ("test", "val/images/2.png")):
        assert opened(tmp_path / "parts", split).names == (str(tmp_path / "parts" / name),)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.png", ".hidden.png", "._mac.png", ".cache/c.png")
    source = opened(tmp_path)
    assert [Path(name).name for name in source.names] == ["a.png", "b.png"]
    assert source.labels is None
    assert source.class_names == ()
    assert next(source.batches(2)).labels is None


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(tmp_path, "elsewhere/1.png", "set/cat/2.png")
    (root / "cat/loop").symlink_to(root)
    (root / "cat/more").symlink_to(tmp_path / "elsewhere")
    (root / "cat/broken.png").symlink_to(tmp_path / "absent.png")
    assert sorted(Path(name).name for name in opened(root).names if "loop" not in name) == [
        "1.png",
        "2.png",
    ]
    assert len(opened(root)) < 10


def test_a_link_to_the_set_itself_gives_no_class_the_others_pictures(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat/all").symlink_to(tmp_path)
    assert labelled(opened(tmp_path), tmp_path) == {"cat/1.png": "cat", "dog/2.png": "dog"}


def test_folders_that_link_to_one_another_are_gone_through_once(tmp_path: Path) -> None:
    names = [f"birds/{number}" for number in range(12)]
    put(tmp_path, *(f"{name}/1.png" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / f"to-{Path(other).name}").symlink_to(tmp_path / other)
    # Along links without a circle there are 12! ways.
    assert len(opened(tmp_path)) == 12


@pytest.mark.parametrize("link", ["cat/loop.png", "cat/loop", "loop"])
def test_a_link_to_itself_is_named(tmp_path: Path, link: str) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / link).symlink_to(tmp_path / link)
    with pytest.raises(BadInput, match=r"loop.*cannot be read") as caught:
        opened(tmp_path)
    assert "links" in caught.value.hint


@pytest.mark.parametrize("closed", ["", "dog", "dog/deep"])
def test_a_folder_that_may_not_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    put(tmp_path, "cat/1.png", "dog/deep/2.png")
    scandir = os.scandir

    def refused(folder: Path) -> object:
        if Path(folder) == tmp_path / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(BadInput, match=r"cannot be read \(Permission denied\)") as caught:
        opened(tmp_path)
    assert str(tmp_path / closed) in caught.value.message
    assert "permissions" in caught.value.hint


def test_a_set_in_a_folder_that_may_not_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refused)
    with pytest.raises(BadInput, match=r"closed/set: cannot be read \(Permission denied\)"):
        opened(Path("closed/set"))


def test_train_and_val_folders_are_the_split(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "train/b/3.png", "val/b/4.png")
    counts = {split: len(opened(tmp_path, split)) for split in ("train", "test", "all")}
    assert counts == {"train": 3, "test": 1, "all": 4}
    test = opened(tmp_path, "test")
    assert test.class_names == ("a", "b")  # Labels mean the same, though val lacks class a.
    assert test.labels is not None
    assert test.labels.tolist() == [1]


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "val/z/2.png")
    with pytest.raises(BadInput, match=r"val: .*train has no class 'z'.* 'a'"):
        opened(tmp_path, "test")


def test_classes_of_the_held_out_part_are_matched_by_name(tmp_path: Path) -> None:
    put(tmp_path, "train/Zebra/1.png", "train/ant/2.png", "val/zebra/3.png", "val/ANT/4.png")
    test = opened(tmp_path, "test")
    assert labelled(test, tmp_path) == {"val/zebra/3.png": "Zebra", "val/ANT/4.png": "ant"}
    assert test.class_names == opened(tmp_path, "train").class_names


def test_a_held_out_part_without_labels_is_refused_for_that(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png")
    with pytest.raises(BadInput, match=r"test: its pictures are in no class folder \(1\.png\)"):
        opened(tmp_path, "test")
    assert len(opened(tmp_path, "train")) == 2


def test_a_folder_without_parts_belongs_to_every_split(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    assert [len(opened(tmp_path, split)) for split in ("train", "test", "all")] == [2, 2, 2]


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="has no pictures"):
        opened(tmp_path)


def test_pictures_beside_class_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "stray.png", "a/1.png")
    with pytest.raises(BadInput, match=r"beside class folders and inside them \(stray\.png\)"):
        opened(tmp_path)


def test_sources_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "one.png")
    with pytest.raises(BadInput, match="no such folder") as caught:
        opened(tmp_path / "absent")
    assert "digits or photos" in caught.value.hint
    with pytest.raises(BadInput, match="is a file"):
        opened(tmp_path / "one.png")


def test_a_damaged_file_is_skipped_by_its_path(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    source = opened(tmp_path)
    assert sum(len(batch.images) for batch in source.batches(4)) == 1
    assert [Path(name).name for name, _ in source.skipped] == ["b.png"]
