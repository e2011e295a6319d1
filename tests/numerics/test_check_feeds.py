"""What an engine was not built for is refused before TensorRT sees it."""

import numpy as np
import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.feeds import check_ranges

RANGES = {"image": ((1, 3, 16, 16), (4, 3, 64, 96))}


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (4, 3, 64, 96), (2, 3, 64, 16)])
def test_shapes_within_the_profile_pass(shape):
    check_ranges({"image": np.zeros(shape)}, RANGES)


@pytest.mark.parametrize("shape", [(1, 3, 8, 16), (1, 3, 96, 64)])
def test_shapes_outside_the_profile_are_refused_by_name(shape):
    with pytest.raises(BadInput, match="input image: its shape"):
        check_ranges({"image": np.zeros(shape)}, RANGES)
