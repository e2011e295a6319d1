"""From Python: all that one needs is at the package's top, and a result shows itself."""

import inspect
import re
import sys

import pytest

import cbam_deploy
from cbam_deploy import Result
from cbam_deploy.exporters.conversion_result import ConvertResult
from cbam_deploy.report.content import Section, Table

PUBLIC = set(dir(cbam_deploy))
FUNCTIONS = sorted(name for name in PUBLIC if name[0].islower())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_signature_asks_for_is_public(name):
    function = inspect.unwrap(getattr(cbam_deploy, name))
    module = sys.modules[function.__module__]
    asked = [
        getattr(module, word, None)
        for parameter in inspect.signature(function).parameters.values()
        for word in re.findall(r"[A-Z]\w+", str(parameter.annotation))
    ]
    parts = [part for one in asked for part in (one, *getattr(one, "__args__", ()))]
    classes = [part for part in parts if isinstance(part, type)]
    ours = {one.__name__ for one in classes if one.__module__.startswith("cbam_deploy")}
    assert ours <= PUBLIC


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_name_means_one_thing_in_every_function(name):
    parameters = inspect.signature(getattr(cbam_deploy, name)).parameters
    assert not {"batch", "batches", "batch_count", "reference_pytorch"} & set(parameters)
    # A network is a model; what a server calls one is its name there.
    assert "model_name" not in parameters or name in ("package", "check_server")


class Said(Result):
    def sections(self):
        table = Table(("name", "value"), (("a<b", "1"),))
        return (Section("Held", passed=False, tables=(table,)), Section("Machine", background=True))


def test_a_result_prints_as_the_commands_table():
    text = "Held: failed\nname  value\na<b       1"
    assert str(Said()) == text
    assert repr(Said()) == text


def test_a_notebook_shows_the_same_table():
    html = Said()._repr_html_()
    assert "Held: failed" in html
    assert '<td style="text-align: left">a&lt;b</td>' in html
    assert "Machine" not in html


def test_a_dataclass_keeps_the_table_as_its_text():
    assert ConvertResult.__repr__ is Result.__str__
