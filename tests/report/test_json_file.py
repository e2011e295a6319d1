import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.report.json_file import to_text, write_json
from cbam_deploy.report.result import Result


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


def test_a_result_is_its_schema_its_verdict_and_its_fields():
    @dataclass(frozen=True)
    class Part:
        sizes: tuple[int, ...]

    @dataclass(frozen=True)
    class Check(Result):
        schema: ClassVar[str] = "cbam_deploy.check"
        path: Path
        parts: dict[str, Part]

        @property
        def passed(self):
            return False

        def sections(self):
            return ()

    assert Check(Path("a.onnx"), {"one": Part((1, 2))}).to_json() == {
        "schema": "cbam_deploy.check",
        "schema_version": 1,
        "passed": False,
        "path": "a.onnx",
        "parts": {"one": {"sizes": [1, 2]}},
    }


def test_a_result_without_schema_is_its_fields():
    @dataclass(frozen=True)
    class Made(Result):
        seconds: float

        def sections(self):
            return ()

    assert Made(1.5).to_json() == {"seconds": 1.5}
