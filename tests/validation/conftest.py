"""Ways to damage a copy of a small exported network."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cbam_deploy.engines.manifest import Manifest, ShapeRange, dumps, manifest_path
from cbam_deploy.numerics.tensors import TensorSpec
from cbam_deploy.provenance import ModelIdentity, Provenance, file_sha256


@pytest.fixture
def altered(network_onnx, tmp_path):
    """Save a copy of the network after `change(model proto)`; return its path."""

    def save(change, name="altered.onnx"):
        model = onnx.load(network_onnx)
        change(model)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def with_weight(altered):
    """Save a copy in which one initializer is `change(array)`; return its path."""

    def save(name, change):
        def edit(model):
            (tensor,) = (t for t in model.graph.initializer if t.name == name)
            array = np.asarray(change(numpy_helper.to_array(tensor).copy()), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, name))

        return altered(edit)

    return save


@pytest.fixture
def engine_like(tmp_path):
    """A file with a sound manifest for batches 1 to 4: enough for all that runs no engine."""
    path = tmp_path / "model.engine"
    path.write_bytes(b"engine")
    spec = TensorSpec("input", ("batch", 3, 32, 32), "float32")
    manifest = Manifest(
        engine_sha256=file_sha256(path),
        engine_bytes=path.stat().st_size,
        onnx="model.onnx",
        onnx_sha256="0" * 64,
        runtime="tensorrt-rtx",
        runtime_version="1.7.1",
        targets=("sm_89",),
        inputs=(spec,),
        outputs=(TensorSpec("logits", ("batch", 10), "float32"),),
        profile={"input": ShapeRange(min=(1, 3, 32, 32), opt=(2, 3, 32, 32), max=(4, 3, 32, 32))},
        precision="fp32",
        gates={},
        options={},
        build_seconds=1.0,
        command="cbam-deploy build-engine model.onnx -o model.engine",
        provenance=Provenance(ModelIdentity("resnet8", "cbam", num_classes=10, stem="cifar")),
    )
    manifest_path(path).write_text(dumps(manifest))
    return path
