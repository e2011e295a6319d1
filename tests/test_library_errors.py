"""What a library says of a file becomes one error of the file; our own defects stay defects."""

import logging

import numpy as np
import onnx
import onnx_ir
import pytest

from cbam_deploy.errors import BadInput
from cbam_deploy.library_errors import said_of_the_file


@said_of_the_file
def asked(path, question):
    return question()


def out_of_memory():
    raise MemoryError("Unable to allocate 768 TiB")


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (lambda: onnx.load_from_string(b"\xff"), "onnx cannot take it"),
        (lambda: onnx.helper.tensor_dtype_to_np_dtype(0), "onnx cannot take it"),
        (lambda: onnx_ir.DataType.UNDEFINED.numpy(), "onnx-ir cannot take it"),
        (out_of_memory, "needs more memory than there is (Unable to allocate 768 TiB)"),
    ],
)
def test_the_error_names_the_file_the_library_and_the_reason(question, said):
    with pytest.raises(BadInput) as refused:
        asked("m.onnx", question)
    assert refused.value.message.startswith(f"m.onnx: {said}")
    with pytest.raises(BadInput, match=r"a\.onnx, b\.onnx: "):
        asked(["a.onnx", "b.onnx"], question)


def test_a_defect_of_our_own_stays_one():
    with pytest.raises(KeyError):
        asked("m.onnx", lambda: dict[str, int]()["gone"])
    with pytest.raises(ValueError, match="reshape"):
        asked("m.onnx", lambda: np.zeros(3).reshape(2))


def test_refusals_pass_unchanged_and_results_too():
    with pytest.raises(BadInput, match=r"^mine$"):
        asked("m.onnx", lambda: (_ for _ in ()).throw(BadInput("mine", "so")))
    assert asked("m.onnx", lambda: 1) == 1


def test_logs_of_onnx_ir_stay_off_the_terminal(caplog):
    asked("m.onnx", lambda: logging.getLogger("onnx_ir.passes").warning("a traceback"))
    assert not caplog.records
