"""A gate described in text is the variant of the paper's table that it says."""

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, SE, GateSpec, parse_gate


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("reduction=16", CBAM),
        ("channel_pool=avg,spatial=none,arrangement=channel", SE),
        ("kernel_size=3, channel_pool=avg+max", GateSpec(kernel_size=3)),
        (
            "spatial=conv1x1,arrangement=parallel",
            GateSpec(spatial="conv1x1", arrangement="parallel"),
        ),
    ],
)
def test_text_names_the_fields_that_differ_from_the_papers_choice(text, spec):
    assert parse_gate(text) == spec


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "''"),
        ("kernel=3", "kernel=3"),
        ("kernel_size", "kernel_size"),
        ("kernel_size=4", "kernel_size"),
        ("reduction=many", "reduction"),
        ("reduction=0", "reduction"),
        ("spatial=none", "arrangement"),
    ],
)
def test_other_text_is_refused_with_what_is_wrong(text, fault):
    with pytest.raises(BadInput, match=fault):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("cbam", "cbam"),
        ("kernel_size=3,reduction=8", "cbam, reduction 8, kernel_size 3"),
        ("cbam-linear,kernel_size=3", "cbam-linear, kernel_size 3"),
        ("channel_pool=max", "cbam, channel_pool max"),
        ("eca,channel_kernel_size=5", "eca, channel_kernel_size 5"),
    ],
)
def test_a_label_says_what_sets_a_gate_apart(text, label):
    assert parse_gate(text).label == label
