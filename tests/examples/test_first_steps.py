"""The notebook runs from its first cell to its last, and shows what it says."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def cells():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return notebook["cells"]


def test_it_is_committed_without_outputs(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_all_cells_run_in_order(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cbam_deploy.benchmarking.memory.applies_to", lambda _: False)
    monkeypatch.setattr("cbam_deploy.benchmarking.interleaving.ROUND_SECONDS", 0.005)
    monkeypatch.setattr("cbam_deploy.benchmarking.warm_up.CHUNK_SECONDS", 0.002)
    names: dict[str, object] = {"__name__": "__main__"}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "seconds=0.3" in code[-1]  # What it measures is not looked at here.
    code[-1] = code[-1].replace("seconds=0.3", "seconds=0.05")
    shown = [result_of(source, names) for source in code]
    places, exported, inspected, _, parity, error, bench = shown[1:]
    assert len(places.places) == 2
    assert exported.to_json()["gates"] == {"CbamGateAddRelu": 2}
    assert inspected.passed
    assert parity.passed
    assert error < 1e-4
    assert {entry.artefact for entry in bench.entries} == {"network.onnx", "network.fp16.onnx"}


def result_of(source, names):
    """Run a cell as a notebook does; give the value of its last expression."""
    *statements, last = ast.parse(source).body
    exec(compile(ast.Module(statements, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None
