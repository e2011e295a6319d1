"""A function of the person's own that makes network inputs of a picture.

It is imported only where the person named it for the command that runs: a name that a file records
is data. It gets one picture, uint8 [H, W, 3] in RGB, and returns one sample without a batch axis:
an array, or arrays by the names of the network's inputs where there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbam_deploy.errors import BadInput
from cbam_deploy.foreign_code import foreign_code, importable, named_object
from cbam_deploy.preprocessing.description import Preprocessing

_FORM = "give package.module:function or path/file.py:function, of a picture [H, W, 3]"
Sample = dict[str, NDArray[Any]]  # One input of a network by name; ``""`` is its only one.


@dataclass(frozen=True)
class OwnFunction(Preprocessing):
    """A preprocessing that a function does.

    Attributes:
        call: the function.
    """

    call: Callable[[NDArray[np.uint8]], Any] = np.asarray

    @property
    def record(self) -> Preprocessing:
        """What an artefact records of it: the name."""
        return Preprocessing(function=self.function)

    def sample(self, picture: NDArray[np.uint8]) -> Sample:
        """What the function makes of a picture [H, W, 3] in RGB.

        Raises:
            BadInput: it fails, or returns neither an array nor arrays by name.
        """
        name = str(self.function)
        what = f"{name}: preparing a picture {list(picture.shape)}"
        with importable(name), foreign_code(what):
            made = self.call(picture)
            named = made if isinstance(made, Mapping) else {"": made}
            sample = {str(name): np.asarray(value) for name, value in named.items()}
        if not sample or any(array.dtype.hasobject for array in sample.values()):
            raise BadInput(f"{self.function} returned no arrays", _FORM)
        return sample


def import_function(name: str) -> OwnFunction:
    """The function that the person named; raises `BadInput` where there is none."""
    call = named_object(name, "function", _FORM)
    return OwnFunction(function=name, call=call)


def recorded(preprocessing: Preprocessing) -> Preprocessing:
    """`preprocessing` as data, without the function itself."""
    return preprocessing.record if isinstance(preprocessing, OwnFunction) else preprocessing
