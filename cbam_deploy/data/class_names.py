"""Classes are matched by name: a folder means the class that is called like it.

Names are the same when they are equal, else when they are so in another Unicode form, letter case
or with blanks around, else with blanks, underscores and hyphens taken for one another: by the first
of these under which the name means one class.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import BadInput

_SHOWN = 6


def normalized(name: str) -> str:
    """`name` composed (NFC), in one letter case, without blanks around it."""
    folded = unicodedata.normalize("NFC", name).casefold()  # Which may decompose it again.
    return unicodedata.normalize("NFC", folded).strip()


def _without_separators(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", normalized(name))).strip()


_FORMS: tuple[Callable[[str], str], ...] = (str, normalized, _without_separators)


def class_indices(
    names: Sequence[str], known: Sequence[str], *, where: str, of: str
) -> tuple[int, ...]:
    """The index in `known` of each of `names`, which may be fewer and in another order.

    Args:
        names: of class folders.
        known: the names that count, in the order of their labels.
        where: what has `names`, for the message.
        of: what has `known`, for the message.

    Raises:
        BadInput: a name means no class or more than one, or two names mean the same.
    """
    places = []
    for form in _FORMS:
        found = defaultdict(list)
        for index, name in enumerate(known):
            found[form(name)].append(index)
        places.append(found)
    indices = []
    for name in names:
        meant = [place.get(form(name), []) for form, place in zip(_FORMS, places, strict=True)]
        indices.append(next((found[0] for found in meant if len(found) == 1), -1))
    unknown = [name for name, index in zip(names, indices, strict=True) if index < 0]
    if unknown:
        unused = [name for index, name in enumerate(known) if index not in indices]
        rest = "it has none"
        if known:
            others = _listed(unused) if unused else "none"
            rest = f"its classes without a folder are {others}"
        raise BadInput(
            f"{where}: {of} has no class {_listed(unknown)}; {rest}",
            "name the folders like the classes; the order does not matter, and some may be absent",
        )
    index, most = Counter(indices).most_common(1)[0] if indices else (0, 0)
    if most > 1:
        same = [name for name, other in zip(names, indices, strict=True) if other == index]
        raise BadInput(
            f"{where}: {_listed(same)} are one class of {of}, {known[index]!r}",
            "put their pictures into one folder",
        )
    return tuple(indices)


def match_classes(
    network: str, known: Sequence[str], classes: int, names: Sequence[str], where: str
) -> NDArray[np.int64]:
    """The network's class for each class of the data.

    By name where the network knows the names of its classes, of which the data may have fewer
    (`class_indices`); else one to one, where both have equally many.

    Args:
        network: name for the message.
        known: names of the network's classes, empty if unknown.
        classes: number of classes that it tells apart.
        names: of the classes of the data, in the order of their labels.
        where: what has them, for the message.

    Returns:
        int64 [labels].

    Raises:
        BadInput: the classes correspond in neither way.
    """
    if known and len(known) != classes:
        raise BadInput(
            f"{network}: records the names of {len(known)} classes and tells {classes} apart",
            "export the network again from its checkpoint",
        )
    if known:
        return np.array(class_indices(names, known, where=where, of=network), np.int64)
    if len(names) != classes:
        raise BadInput(
            f"{where}: has {len(names)} classes, {network} tells {classes} apart",
            "give labelled pictures of the classes that the network was trained on",
        )
    return np.arange(classes)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
