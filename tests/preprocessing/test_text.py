"""The text of a preprocessing says all of it, and says one thing only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbam_deploy.errors import BadInput
from cbam_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cbam_deploy.preprocessing.description import CHANNELS, imagenet_values
from cbam_deploy.preprocessing.text import parse, text_of

sides = st.integers(1, 10**6)
numbers = st.floats(-1e9, 1e9, allow_nan=False)
positive = st.floats(1e-9, 1e9, allow_nan=False)


@st.composite
def preprocessings(draw):
    colour = draw(st.sampled_from(sorted(CHANNELS)))
    count = CHANNELS[colour]
    imagenet = draw(st.booleans()) and imagenet_values(colour)
    fit = draw(st.sampled_from(["crop", "stretch", "letterbox", "keep"]))
    height, width = draw(sides), draw(sides)
    return Preprocessing(
        image_size=height,
        resize=draw(sides) if fit == "crop" else height,
        mean=imagenet[0] if imagenet else draw(st.tuples(*[numbers] * count)),
        std=imagenet[1] if imagenet else draw(st.tuples(*[positive] * count)),
        width=None if width == height else width,
        fit=fit,
        colour=colour,
        scale=255.0 if imagenet else draw(st.sampled_from([1.0, 255.0]) | positive),
        padding=draw(st.integers(0, 255)) if fit == "letterbox" else 114,
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
    )


@given(preprocessings())
def test_parse_reads_back_what_is_written(preprocessing):
    assert parse(text_of(preprocessing)) == preprocessing


@given(preprocessings())
def test_what_is_read_back_is_written_the_same(preprocessing):
    text = text_of(preprocessing)
    assert text_of(parse(text)) == text


def test_a_detector_is_letterboxed_and_divided_by_255():
    found = parse("letterbox 640, rgb, /255")
    assert (found.fit, found.frame, found.colour, found.padding) == (
        "letterbox",
        (640, 640),
        "rgb",
        114,
    )
    assert (found.scale, found.mean, found.std) == (255, (0, 0, 0), (1, 1, 1))


def test_imagenet_is_its_protocol():
    assert parse("resize 256, crop 224, imagenet") == Preprocessing()
    assert parse("stretch 8, bgr, imagenet").mean == IMAGENET_MEAN[::-1]
    assert parse("stretch 8, bgr, imagenet").std == IMAGENET_STD[::-1]


def test_raw_takes_pictures_of_the_networks_size_as_they_are():
    found = parse("raw", (None, 3, 20, 30))
    assert (found.fit, found.frame, found.scale, found.mean) == ("keep", (20, 30), 1, (0, 0, 0))
    assert parse("raw, nhwc", (None, 20, 30, 3)).frame == (20, 30)


def test_steps_stand_in_any_order_and_without_a_size_where_the_network_has_one():
    a = parse("nhwc,/255 ,  letterbox,bgr", (1, 32, 48, 3))
    assert a == parse("letterbox 32x48, bgr, /255, nhwc")


def test_one_number_is_every_channels():
    assert parse("stretch 8, /255, mean 0.5, std 0.25").mean == (0.5, 0.5, 0.5)
    assert parse("stretch 8, rgba, /255, mean 0.5").std == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("letterbox 640", "nothing says the values"),
        ("letterbox 640, shrink, raw", "'shrink' is not understood"),
        ("letterbox 640, stretch 640, raw", "second step of its kind"),
        ("letterbox, raw", "nothing says the size"),
        ("raw", "nothing says the size"),
        ("resize 256, raw", "belong together"),
        ("crop 224, raw", "belong together"),
        ("stretch 8, pad 0, raw", "pad is for letterbox"),
        ("stretch 8, raw, /255", "raw says the values already"),
        ("stretch 8, rgba, imagenet", "no values for rgba"),
        ("stretch 8, /zero", "'zero' is not a number"),
        ("stretch 8, /0", "not positive"),
        ("stretch 8, std 1 0 1", "not positive"),
        ("stretch 8, mean nan", "not finite"),
        ("stretch 8, mean 1 2", "not of 3 channels"),
        ("stretch 0, raw", "out of range"),
        ("letterbox 8, pad 256, raw", "no level"),
        ("", "'' is not understood"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, reason):
    with pytest.raises(BadInput, match="--preprocess") as refused:
        parse(text)
    assert reason in refused.value.message
    assert "letterbox 640" in refused.value.hint
