"""The text of a launch program says what the dataclass says, and nothing else is taken for one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbam_deploy.gates.description import CBAM
from cbam_deploy.gates.operators import in_lower_case, operator_for
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import KNOWN_DEVICES
from cbam_deploy.plugins.launch_program import (
    Image,
    LaunchProgram,
    MapFormat,
    ProgramLaunch,
    Tactic,
    Target,
    read_program,
    text,
)
from cbam_deploy.plugins.tactics import STAGED, tactics

OPERATOR = operator_for(CBAM, residual=True, activation="relu")
WRITTEN = """\
cbam_deploy 2
gate CbamGateAddRelu on 256x56x56 at layer1.0
inputs x r w0 b0 w1 b1 ws bs
maps x r
sizes 256 56 56
image some_entry sm_87 00112233445566aa 0 4096
image some_entry compute_87 8899aabbccddeeff - 2048
target 90
format int8 CHW32
tactic 1
buffer partials 4096
launch some_entry 16 1 256 2048 : x 256 -5 partials
launch some_entry 8 8 512 0 persistent : partials batch y
launch some_entry 4 1 256 0 programmatic : partials y
"""


def program(dtype: str = "float16", layout: str = "nhwc", name: str = "HWC8") -> LaunchProgram:
    """The program of one gate in one format, without images."""
    gate = Gate(OPERATOR, 64, 56, 56, 4, 7, dtype=dtype, layout=layout)
    offered = tactics(gate, KNOWN_DEVICES[87])
    plans = tuple(Tactic.of(number, plan) for number, plan in offered.items())
    return LaunchProgram(
        gate="CbamGateAddRelu on 64x56x56 at layer1.0",
        inputs=in_lower_case(OPERATOR.inputs),
        maps=in_lower_case(OPERATOR.maps),
        sizes=(64, 56, 56),
        targets=(Target(87, (MapFormat(dtype, name, plans),)),),
    )


def test_the_text_is_that_of_the_contract_with_the_library():
    found = read_program(WRITTEN)
    launches = (
        ProgramLaunch("some_entry", 16, 1, 256, 2048, ("x", 256, -5, "partials")),
        ProgramLaunch("some_entry", 8, 8, 512, 0, ("partials", "batch", "y"), persistent=True),
        ProgramLaunch("some_entry", 4, 1, 256, 0, ("partials", "y"), programmatic=True),
    )
    assert found == LaunchProgram(
        gate="CbamGateAddRelu on 256x56x56 at layer1.0",
        inputs=("x", "r", "w0", "b0", "w1", "b1", "ws", "bs"),
        maps=("x", "r"),
        sizes=(256, 56, 56),
        images=(
            Image("some_entry", "sm_87", "00112233445566aa", 0, 4096),
            Image("some_entry", "compute_87", "8899aabbccddeeff", None, 2048),
        ),
        targets=(
            Target(
                90, (MapFormat("int8", "CHW32", (Tactic(1, (("partials", 4096),), launches),)),)
            ),
        ),
    )
    assert text(found) == WRITTEN
    assert found.operator == "CbamGateAddRelu"


def test_a_program_of_the_version_before_is_still_read():
    written = WRITTEN.replace("cbam_deploy 2", "cbam_deploy 1")
    for flag in ("persistent ", "programmatic "):
        written = written.replace(flag, "")
    launches = read_program(written).targets[0].formats[0].tactics[0].launches
    assert not any(one.persistent or one.programmatic for one in launches)


def test_a_planned_gate_is_read_back_as_it_was_written():
    written = program()
    assert read_program(text(written)) == written


def test_workspace_is_counted_in_bytes():
    (form,) = program().targets[0].formats
    staged = next(tactic for tactic in form.tactics if tactic.number == STAGED)
    buffers = dict(staged.buffers)
    assert buffers["channel_gates"] == 4 * 64
    assert buffers["pooled"] == 4 * 2 * 56 * 56


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: "",
        lambda t: t[:-1],
        lambda t: t.replace("cbam_deploy 2", "cbam_deploy 3"),
        lambda t: t.replace("persistent", "other"),
        lambda t: t.replace("programmatic", "programmatic persistent"),
        lambda t: t.replace("target 90\n", ""),
        lambda t: t.replace("target 90\n", "target 89\n"),  # where kernels do not wait
        lambda t: t.replace("16 1 256 2048", "16 1 256 2048 programmatic"),  # with none before it
        lambda t: t.replace("format int8", "format int4"),
        lambda t: t.replace("tactic 1\n", ""),
        lambda t: t.replace(" : ", " "),
        lambda t: t.replace("16 1 256 2048", "16 1 256"),
        lambda t: t.replace("sizes 256", "sizes"),
        lambda t: t.replace("maps x r\n", ""),
        lambda t: t.replace("buffer ", "program "),
        lambda t: t + "\n",
    ],
)
def test_what_is_no_program_is_refused(damage):
    with pytest.raises(ValueError, match="launch program"):
        read_program(damage(WRITTEN))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(WRITTEN)), st.integers(1, 20), st.text(max_size=5))
def test_no_damage_raises_anything_else(at, length, inserted):
    damaged = WRITTEN[:at] + inserted + WRITTEN[at + length :]
    with contextlib.suppress(ValueError):
        assert read_program(damaged).inputs
