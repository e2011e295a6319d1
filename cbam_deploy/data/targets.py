"""Pictures with a file of targets for each: masks, or boxes as text.

``masks/street/1.png`` belongs to ``images/street/1.jpg``: the folders of pictures and of targets
lie beside one another and have the same inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.data.listing import IMAGES
from cbam_deploy.data.open_source import open_source
from cbam_deploy.data.pictures import require_pillow
from cbam_deploy.data.source import ImageSource
from cbam_deploy.data.splits import find_parts
from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.preprocessing import Preprocessing


@dataclass(frozen=True)
class Targets:
    """Pictures, and where their targets lie.

    Attributes:
        source: the pictures; `source.names` are their paths.
        pictures: the folder they lie in.
        folder: that of the targets.
        suffix: of a file of targets, with its dot.
    """

    source: ImageSource
    pictures: Path
    folder: Path
    suffix: str

    def path(self, index: int) -> Path:
        """Where the target of a picture lies, if it has one."""
        inside = Path(self.source.names[index]).relative_to(self.pictures)
        return (self.folder / inside).with_suffix(self.suffix)


def open_targets(data: str, preprocessing: Preprocessing, *, name: str, suffix: str) -> Targets:
    """The pictures of SOURCE and the folder `name` of their targets.

    SOURCE is a folder with ``images`` and `name` inside, or a folder of pictures: for
    ``.../images/val`` the targets lie in ``.../name/val``, for any other beside it. Of a folder
    with parts to train on and to validate with, it is the latter.

    Args:
        data: SOURCE.
        preprocessing: how network inputs are made from the pictures.
        name: of the folder of targets, such as ``masks``.
        suffix: of its files, such as ``.png``.

    Raises:
        BadInput: there is no such folder, or no picture.
        MissingCapability: Pillow is not installed.
    """
    root = Path(data)
    hint = f"give a folder with {IMAGES}/ and {name}/ in it: {IMAGES}/1.jpg, {name}/1{suffix}"
    if not root.is_dir():
        raise BadInput(f"{data}: is no folder of pictures with their {name}", hint)
    if not (root / IMAGES).is_dir() and (parts := find_parts(root)):
        root = parts.test or parts.train
    pictures = root / IMAGES if (root / IMAGES).is_dir() else root
    folder = next((path for path in _beside(pictures, name) if path.is_dir()), None)
    if folder is None:
        raise BadInput(f"{data}: has no folder {name!r} beside its pictures", hint)
    source = open_source(str(pictures), preprocessing, split="test")
    return Targets(source, pictures, folder, suffix)


def _beside(pictures: Path, name: str) -> list[Path]:
    """Where targets may lie: in place of the last folder ``images``, else beside the pictures."""
    found = []
    parts = list(pictures.parts)
    if IMAGES in parts:
        last = len(parts) - 1 - parts[::-1].index(IMAGES)
        found.append(Path(*parts[:last], name, *parts[last + 1 :]))
    return [*found, pictures.resolve().parent / name]


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture in pixels, from its header.

    Raises:
        BadInput: it cannot be read.
    """
    require_pillow()
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.size
    except Exception as error:  # Decoders answer damaged bytes with errors of any kind.
        raise BadInput(f"{path}: {in_one_line(error)}", "leave the picture out") from error
