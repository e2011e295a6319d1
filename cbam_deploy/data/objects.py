"""Objects of known classes in pictures: boxes of YOLO's text files and of COCO's JSON files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray

from cbam_deploy.command_files import check_regular
from cbam_deploy.data.folders import open_files
from cbam_deploy.data.listing import BOXES
from cbam_deploy.data.source import ImageSource
from cbam_deploy.data.targets import Targets, open_targets, picture_size
from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.preprocessing import Preprocessing

_YOLO = "write a line for each object: class, centre x, centre y, width, height, as parts of 1"
_LARGEST_CLASS = 2**31
_LONGEST_NAME = 255  # Bytes, of a file on any common file system.
_ROUNDING = 1e-4  # How far beyond the picture a box may reach by rounding, in parts of its sides.


@dataclass(frozen=True)
class Objects:
    """What lies in one picture.

    Attributes:
        boxes: left, top, right and bottom in pixels of the picture, float64 [M, 4].
        classes: int64 [M].
        crowd: boxes around many objects that nobody counted, bool [M].
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class ObjectSet:
    """Pictures and the objects in them.

    Attributes:
        source: the pictures.
        class_names: of the objects' classes, in the order of their numbers; empty where nothing
            says them, and numbers are those of the network's classes.
        objects: those of a picture, by its index, and the file that says so.
    """

    source: ImageSource
    class_names: tuple[str, ...]
    objects: Callable[[int], tuple[Objects, Path]]


def open_objects(data: str, preprocessing: Preprocessing) -> ObjectSet:
    """Open SOURCE: a COCO file, a folder with one, or a folder of pictures with YOLO's labels.

    Args:
        data: a ``.json`` file; a folder with one, in it or in its folder ``annotations``, and
            without a folder ``labels``; or pictures with ``labels`` (`targets.open_targets`), and
            perhaps ``classes.txt``, whose lines name the classes.
        preprocessing: how network inputs are made from the pictures.

    Raises:
        BadInput: nothing says where the objects are, a file is malformed, or pictures are missing.
        MissingCapability: Pillow is not installed.
    """
    root = Path(data)
    if root.suffix == ".json" and root.is_file():
        return _open_coco(data, root, preprocessing)
    inside = root / "annotations"
    found = sorted([*root.glob("*.json"), *inside.glob("*.json")])
    if (root / BOXES).is_dir():
        found = []
    if len(found) > 1:
        raise BadInput(
            f"{data}: has several files of annotations, {found[0]} and {found[1]}",
            "give the one that counts instead of the folder",
        )
    if found:
        return _open_coco(data, found[0], preprocessing)
    return _open_yolo(open_targets(data, preprocessing, name=BOXES, suffix=".txt"))


def _open_yolo(targets: Targets) -> ObjectSet:
    source = targets.source
    if not any(targets.path(index).is_file() for index in range(len(source))):
        raise BadInput(
            f"{targets.folder}: has no labels of the pictures in {targets.pictures}",
            f"{targets.path(0)} says what lies in {source.names[0]}: {_YOLO}",
        )
    folder = targets.folder
    labels = next((above for above in (folder, *folder.parents) if above.name == BOXES), folder)
    near = (at / "classes.txt" for at in (folder, labels, labels.parent))
    names = next((path for path in near if path.is_file()), None)

    def objects(index: int) -> tuple[Objects, Path]:
        path = targets.path(index)
        return _yolo_objects(path, picture_size(source.names[index])), path

    return ObjectSet(source, () if names is None else _lines(names), objects)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({in_one_line(error)})", "save as UTF-8") from error
    return tuple(line.strip() for line in lines if line.strip())


def _yolo_objects(path: Path, size: tuple[int, int]) -> Objects:
    """What a text file says; a picture without one has no objects."""
    rows = []
    for number, line in enumerate(_lines(path) if path.is_file() else (), start=1):
        where = f"{path}: object {number}"
        try:
            kind, *box = (float(word) for word in line.split())
        except ValueError:
            raise BadInput(f"{where} is {line[:60]!r}, not numbers", _YOLO) from None
        if len(box) != 4:
            raise BadInput(f"{where} has {len(box) + 1} numbers, not 5", _YOLO)
        if not (0 <= kind <= _LARGEST_CLASS and kind == int(kind)):
            raise BadInput(f"{where} is of class {kind:g}", _YOLO)
        if not all(0 <= value <= 1 + _ROUNDING for value in box):
            raise BadInput(f"{where} reaches beyond 0 to 1: {line[:60]}", _YOLO)
        rows.append((kind, *box))
    table = np.array(rows, np.float64).reshape(-1, 5)
    middles, sides = table[:, 1:3] * size, table[:, 3:] * size
    boxes = np.hstack([middles - sides / 2, middles + sides / 2])
    return Objects(boxes, table[:, 0].astype(np.int64), np.zeros(len(table), bool))


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def _open_coco(data: str, path: Path, preprocessing: Preprocessing) -> ObjectSet:
    """Format: "Data format" of https://cocodataset.org, object detection."""
    check_regular(path)
    try:
        coco = msgspec.json.decode(path.read_bytes(), type=_Coco)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path}: is no COCO file of objects ({in_one_line(error)})",
            "give JSON with images, annotations with bbox, and categories",
        ) from error
    if not coco.images:
        raise BadInput(f"{path}: lists no images", "give a file with images")
    # Detectors number classes in the order of these, which have gaps.
    categories = sorted(coco.categories, key=lambda one: one.id)
    number = {one.id: index for index, one in enumerate(categories)}
    of_image: dict[int, list[_Annotation]] = defaultdict(list)
    known = {one.id for one in coco.images}
    for index, one in enumerate(coco.annotations):
        if one.category_id not in number or one.image_id not in known:
            raise BadInput(
                f"{path}: annotation {index} is of category {one.category_id} in image"
                f" {one.image_id}, which the file does not list",
                "add it, or leave the annotation out",
            )
        if min(one.bbox[2:]) < 0 or not all(map(np.isfinite, one.bbox)):
            raise BadInput(
                f"{path}: annotation {index} has the bbox {list(one.bbox)}",
                "write left, top, width and height in pixels",
            )
        of_image[one.image_id].append(one)
    files = _picture_files(path, [image.file_name for image in coco.images])
    source = open_files(data, files, preprocessing)

    def objects(index: int) -> tuple[Objects, Path]:
        found = of_image[coco.images[index].id]
        boxes = np.array([one.bbox for one in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([number[one.category_id] for one in found], np.int64)
        return Objects(boxes, classes, np.array([one.iscrowd != 0 for one in found], bool)), path

    return ObjectSet(source, tuple(one.name for one in categories), objects)


def _picture_files(path: Path, names: Sequence[str]) -> list[Path]:
    """The pictures that a COCO file names; never such as lie outside of its data set's folder."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name:
            raise BadInput(
                f"{path}: names the picture {name!r}, which does not lie below the data set",
                "write file names relative to the folder of pictures",
            )
        if max(len(os.fsencode(part)) for part in parts) > _LONGEST_NAME:
            raise BadInput(f"{path}: names the picture {name[:60]!r}…", "give it a shorter name")
    above = path.parent.parent if path.parent.name == "annotations" else path.parent
    part = path.stem.rpartition("_")[2]  # Of instances_val2017.json.
    folders = [
        at / inside
        for at in (path.parent, above)
        for inside in ("", "images", part, f"images/{part}")
    ]
    for folder in folders:
        if (folder / names[0]).is_file():
            files = [folder / name for name in names]
            missing = next((file for file in files if not file.is_file()), None)
            if missing is not None:
                raise BadInput(f"{missing}: no such picture, which {path} lists", "add it")
            return files
    raise BadInput(
        f"{path}: lists the picture {names[0]!r}, which does not lie beside it",
        "put the pictures beside the file, or into images/ or a folder of its name's last word",
    )
