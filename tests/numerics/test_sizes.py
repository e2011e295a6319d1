"""``--size`` means one thing wherever it is taken."""

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.sizes import free_axes, parse_sizes, typical_sizes
from cbam_deploy.numerics.tensors import TensorSpec

SPECS = (
    TensorSpec("image", ("batch", 3, "H", "W"), "float32"),
    TensorSpec("mask", ("batch", 1, "H", 4), "float32"),
)


def test_free_axes_are_all_but_the_batch():
    assert list(free_axes(SPECS)) == ["H", "W"]


def test_one_size_is_a_range_of_one_and_a_range_has_a_typical_size():
    assert parse_sizes(["H=640", "W=1,2,3"], free_axes(SPECS), "net") == {
        "H": (640, 640, 640),
        "W": (1, 2, 3),
    }
    assert typical_sizes(["H=640", "W=1,2,3"], free_axes(SPECS), "net") == {"H": 640, "W": 2}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["H"], "is not understood"),
        (["H=1,2"], "is not understood"),
        (["H=-1"], "is not understood"),
        (["H=0"], "1 <= min"),
        (["H=3,2,4"], "1 <= min"),
        (["H=1,2,1000001"], "is larger than 1000000"),
        (["D=3"], "net: has no free axis D"),
        (["H=3", "H=4"], "given twice"),
    ],
)
def test_other_texts_are_refused(texts, message):
    with pytest.raises(BadInput, match=message):
        parse_sizes(texts, free_axes(SPECS), "net")
