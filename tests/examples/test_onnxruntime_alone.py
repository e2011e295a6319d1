"""A file runs by NumPy and ONNX Runtime alone, and says what PyTorch says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from cbam_deploy import create_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnxruntime_alone.py"
# Runs it where importing anything else of ours, or what we stand on, fails.
ALONE = (
    "import runpy, sys\n"
    "for name in ('cbam_deploy', 'torch', 'onnx', 'onnx_ir', 'polygraphy', 'PIL'):\n"
    "    sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def test_it_needs_nothing_else_and_agrees_with_pytorch(network_onnx, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, EXAMPLE, network_onnx, tmp_path / "pictures.npy"],
        capture_output=True,
        text=True,
        check=True,
    )
    network = create_model("resnet8", num_classes=10, seed=0).double().eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((torch.from_numpy(pictures) / 255.0 - mean) / std).permute(0, 3, 1, 2).double()
    with torch.no_grad():
        shares = network(inputs).softmax(1)
    found = re.findall(r"^class (\d)  (.+)%$", ended.stdout, re.M)
    assert [int(name) for name, _ in found] == shares.argmax(1).tolist()
    said = [float(share) for _, share in found]
    np.testing.assert_allclose(said, 100 * shares.max(1).values, atol=0.006)
