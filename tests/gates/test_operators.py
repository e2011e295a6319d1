"""Operators follow from descriptions, and keep the names and inputs that files in the field use."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cbam_deploy.gates.description import CBAM, SE, GateSpec
from cbam_deploy.gates.operators import (
    DOMAIN,
    GATE_OPERATORS,
    GateOperator,
    operator_for,
    operator_of,
)


@pytest.mark.parametrize(
    ("gate", "residual", "name", "function", "inputs"),
    [
        (CBAM, False, "CbamGate", "cbam_gate", "X W0 B0 W1 B1 WS BS"),
        (CBAM, True, "CbamGateAddRelu", "cbam_gate_add_relu", "X R W0 B0 W1 B1 WS BS"),
        (SE, False, "SeGate", "se_gate", "X W0 B0 W1 B1"),
        (SE, True, "SeGateAddRelu", "se_gate_add_relu", "X R W0 B0 W1 B1"),
    ],
)
def test_a_description_leads_to_its_operator_and_back(gate, residual, name, function, inputs):
    operator = operator_for(replace(gate, reduction=4), residual=residual)
    assert operator == GATE_OPERATORS[name] == GateOperator(gate, residual)
    assert (operator.name, operator.function) == (name, function)
    assert " ".join(operator.inputs) == inputs


@pytest.mark.parametrize(
    "gate", [GateSpec(channel_pool="max"), GateSpec(arrangement="parallel"), GateSpec("avg")]
)
def test_a_variant_without_an_operator_has_none(gate):
    assert operator_for(gate) is None


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
