"""Operators follow from descriptions, and keep the names and inputs that files in the field use."""

import itertools
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest

from cbam_deploy.gates.description import (
    CBAM,
    GATES,
    SE,
    Activation,
    Arrangement,
    ChannelPool,
    GateFunction,
    GateSpec,
    Join,
    Mixer,
    Spatial,
)
from cbam_deploy.gates.operators import (
    DOMAIN,
    GATE_OPERATORS,
    operator_for,
    operator_named,
    operator_of,
)

ALONE, RELU_OF_SUM = (False, "none"), (True, "relu")


@pytest.mark.parametrize(
    ("gate", "behind", "name", "inputs"),
    [
        # Files in the field use these four.
        (CBAM, ALONE, "CbamGate", "X W0 B0 W1 B1 WS BS"),
        (CBAM, RELU_OF_SUM, "CbamGateAddRelu", "X R W0 B0 W1 B1 WS BS"),
        (SE, ALONE, "SeGate", "X W0 B0 W1 B1"),
        (SE, RELU_OF_SUM, "SeGateAddRelu", "X R W0 B0 W1 B1"),
        (GATES["eca"], ALONE, "EcaGate", "X WC BC"),
        (GATES["ese"], (True, "none"), "SeGateLinearHardSigmoidAdd", "X R W1 B1"),
        (GATES["cbam-linear"], (False, "silu"), "CbamGateMeanLinearThenSilu", "X W1 B1 WS BS"),
        (GATES["scse"], ALONE, "ScseGate", "X W0 B0 W1 B1 WD WS BS"),
        (GateSpec(arrangement="spatial", spatial="avg"), ALONE, "SpatialGateMeanMap", "X WS BS"),
    ],
)
def test_a_description_leads_to_its_operator_and_back(gate, behind, name, inputs):
    residual, activation = behind
    operator = operator_for(replace(gate, reduction=4), residual=residual, activation=activation)
    assert operator == operator_named(name)
    assert operator.name == name
    assert " ".join(operator.inputs) == inputs


def test_every_gate_has_a_name_of_its_own_from_which_it_is_found():
    choices = (ChannelPool, Spatial, Arrangement, Mixer, Activation, Join, GateFunction)
    gates = set()
    for values in itertools.product(*map(get_args, choices)):
        fields = ("channel_pool", "spatial", "arrangement", "mixer", "activation", "join")
        given = dict(zip((*fields, "spatial_gate"), values, strict=True))
        with suppress(ValueError):
            gates.add(GateSpec(**given).kind)
    behind = [(r, a) for r in (False, True) for a in ("none", *get_args(Activation))]
    operators = {
        operator_for(gate, residual=behind[n % 12][0], activation=behind[n % 12][1])
        for n, gate in enumerate(sorted(gates, key=repr))
    }
    assert len({one.name for one in operators}) == len(operators) > 1000
    assert all(operator_named(one.name) == one for one in operators)


@pytest.mark.parametrize(
    "name",
    [
        "CbamGateRelu",
        "SeGateMean",
        "SeGateLinearSilu",
        "EcaGateConv",
        "Gate",
        "CbamGateAddThenRelu",
    ],
)
def test_other_names_are_no_operators(name):
    assert operator_named(name) is None


def test_inputs_of_a_node_are_found_by_name_as_far_as_it_has_them():
    node = SimpleNamespace(domain=DOMAIN, op_type="SeGateAddRelu", input=["x", "shortcut", "down"])
    found = operator_of(node).by_name(node.input)
    assert found == {"X": "x", "R": "shortcut", "W0": "down"}


@pytest.mark.parametrize(("domain", "op"), [("", "SeGate"), (DOMAIN, "NativeSeGate")])
def test_nodes_of_other_domains_and_names_are_no_gates(domain, op):
    assert operator_of(SimpleNamespace(domain=domain, op_type=op)) is None


def test_weights_have_the_shapes_of_the_operators_inputs():
    shapes = GATE_OPERATORS["CbamGate"].weight_shapes(channels=8, hidden=2, kernel_size=3)
    assert tuple(shapes) == GATE_OPERATORS["CbamGate"].weights
    assert shapes["W0"] == shapes["W1"][::-1] == (2, 8)
    assert shapes["WS"] == (1, 2, 3, 3)
