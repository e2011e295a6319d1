"""Which folders of a data set are its parts: to train on, to validate with, to test with.

A part goes by one of the usual names, in any letter case, with a word or number around it:
``train``, ``Training_Set``, ``valid``, ``val2017``, ``testing``. Folders that look like parts and
hold classes of the same names are never taken for classes themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cbam_deploy.data.class_names import normalized
from cbam_deploy.data.listing import class_folders, listing, pictures_below
from cbam_deploy.errors import BadInput

Kind = Literal["train", "val", "test"]

_ADDED = "set|sets|data|dataset|images?|imgs?|pictures?|photos?|samples?|splits?|parts?"
_WORDS: dict[Kind, str] = {
    "train": "train|training|trainval|trn|learn|learning",
    "val": "val|valid|validation|validate|dev|development|eval|evaluation",
    "test": "test|tests|testing|tst|holdout|heldout",
}
_NUMBERED = re.compile(rf"(k?folds?|partitions?|subsets?|cv|{_ADDED})+")


@dataclass(frozen=True)
class Parts:
    """Folders of the training part and of the held-out one, None where there is only one part."""

    train: Path
    test: Path | None


def find_parts(root: Path) -> Parts | None:
    """The parts of the data set in `root`; None where its folders are classes, or it has none.

    The held-out part is that for validation, else that for testing. A folder
    whose only pictures lie in one part has the parts of that, or that alone.

    Raises:
        BadInput: several folders may be a part, or folders look like parts of another kind.
    """
    folders = listing(root).folders
    looks = [folder for folder in folders if _is_part(folder)]
    train = _one_of(root, "train", looks)
    test = _one_of(root, "val", looks) or _one_of(root, "test", looks)
    if train and test:
        return Parts(train, test)
    divided = [folder for folder in looks if class_folders(folder)]
    if not divided:
        return None
    holding = [folder for folder in folders if next(pictures_below(folder), None)]
    if len(holding) == 1:
        return find_parts(holding[0]) or Parts(holding[0], None)
    _refuse_parts(root, divided, holding)
    return None


def has_split(root: Path) -> bool:
    """Whether `root` is divided into a training part and a held-out one; raises `BadInput`."""
    parts = find_parts(root)
    return parts is not None and parts.test is not None


def part_kind(name: str) -> Kind | None:
    """Which part a folder of this name looks like."""
    kinds = {
        kind
        for word in _words(name)
        for kind, words in _WORDS.items()
        if re.fullmatch(f"(?:{words})(?:{_ADDED})?", word)
    }
    if kinds == {"train", "val"}:  # As VOC has it: all that is not for testing.
        return "train"
    return kinds.pop() if len(kinds) == 1 else None


def _words(name: str) -> list[str]:
    joined = re.sub(r"\b(hold|held)[\W_]*out\b", "holdout", normalized(name))
    return re.findall(r"[^\W\d_]+", joined)


def _is_plain(name: str) -> bool:
    """Whether every word of `name` says that it is a part, or which; ``set A`` does."""
    words = [word for word in _words(name) if len(word) > 1]
    return bool(words) and all(part_kind(word) or _NUMBERED.fullmatch(word) for word in words)


def _is_part(folder: Path) -> bool:
    """By its name alone, or by one word of it where it has the inside of a part."""
    if _is_plain(folder.name):
        return True
    return part_kind(folder.name) is not None and bool(class_folders(folder))


def _one_of(root: Path, kind: Kind, folders: list[Path]) -> Path | None:
    found = [folder for folder in folders if part_kind(folder.name) == kind]
    for better in (lambda name: name.casefold() == kind, _is_plain):
        preferred = [folder for folder in found if better(folder.name)]
        found = preferred or found
    if len(found) > 1:
        raise BadInput(
            f"{root}: {found[0].name} and {found[1].name} both look like its part {kind!r}",
            f"name the one that counts {kind}, or move the others away",
        )
    return found[0] if found else None


def _refuse_parts(root: Path, divided: list[Path], holding: list[Path]) -> None:
    """Refuse to take parts for classes: like-named folders inside, and one or both named so.

    A single folder named like a part among three and more may be a class (a train, say).
    """
    for part in divided:
        inside = {normalized(name) for name in class_folders(part)}
        others = [other for other in divided if other != part]
        if len(holding) == 2:
            others = [other for other in holding if other != part]
        for other in others:
            if inside & {normalized(name) for name in class_folders(other)}:
                raise BadInput(
                    f"{root}: {part.name} and {other.name} hold folders of the same names, so they"
                    " look like parts of a data set, not like classes",
                    "name the parts train and val, or give the folder of one part; if they are"
                    " classes, put their pictures directly into them",
                )
