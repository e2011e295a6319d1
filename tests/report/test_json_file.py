import json

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.report.json_file import to_text, write_json


def refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def test_nan_and_infinity_become_null_at_any_depth():
    data = {"a": [1.5, float("nan"), {"b": (float("inf"), -float("inf"))}]}
    read = json.loads(to_text(data), parse_constant=refuse)
    assert read == {"a": [1.5, None, {"b": [None, None]}]}


def test_names_of_any_characters_survive():
    data = {"name": "größe \ud800 \x00 </script> 模型"}
    text = to_text(data)
    text.encode("ascii")
    assert json.loads(text) == data


def test_a_report_replaces_the_earlier_one_whole(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("x" * 1000)
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_report_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="gone"):
        write_json(tmp_path / "gone" / "report.json", {})


def test_what_has_no_json_form_leaves_the_earlier_report(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("earlier")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "earlier"
