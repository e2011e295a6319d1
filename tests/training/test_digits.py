"""The recipe for handwritten digits teaches a CBAM-ResNet to read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cbam_deploy.data import open_source
from cbam_deploy.models import load_model, resolve_identity, resolve_preprocessing
from cbam_deploy.models.gate import AttentionGate
from cbam_deploy.provenance import ModelIdentity


@pytest.mark.slow
def test_a_cbam_resnet_reads_98_percent_of_the_test_digits(digits_run: Path) -> None:
    identity, provenance = resolve_identity(
        ModelIdentity("resnet20", weights=str(digits_run / "best.safetensors"))
    )
    model = load_model(identity)
    assert sum(isinstance(module, AttentionGate) for module in model.modules()) == 9

    test_set = open_source("digits", resolve_preprocessing(identity, provenance), split="test")
    right = 0
    for batch in test_set.batches(100):
        with torch.no_grad():
            answers = model(torch.from_numpy(batch.images)).argmax(1).numpy()
        right += int((answers == batch.labels).sum())
    accuracy = right / len(test_set)
    assert accuracy >= 0.98

    epochs = json.loads((digits_run / "history.json").read_text())["epochs"]
    assert accuracy == pytest.approx(max(epoch["val_accuracy"] for epoch in epochs))
