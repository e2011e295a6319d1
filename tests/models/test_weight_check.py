"""What may be loaded into what, and values that are no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cbam_deploy.errors import BadInput
from cbam_deploy.models import apply_state, load_state
from cbam_deploy.models.weight_check import check_values


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.register_buffer("index", torch.tensor([3, 300]))
        self.register_buffer("keep", torch.tensor([True, False]))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))


def given(**changes: Tensor) -> dict[str, Tensor]:
    named = {name.replace("_", ".", 1): tensor for name, tensor in changes.items()}
    return {**Net().state_dict(), **named}


FITTING = {
    "FP16": given(conv_weight=torch.ones(2, 1, 1, 1).half()),
    "BF16": given(conv_weight=torch.ones(2, 1, 1, 1).bfloat16()),
    "FP64": given(bn_running_var=torch.ones(2).double()),
    "narrower integers": given(index=torch.tensor([3, 300], dtype=torch.int16)),
    "a mask of bytes": given(keep=torch.tensor([1, 0], dtype=torch.uint8)),
    "an averaged counter": given(bn_num_batches_tracked=torch.tensor(2.5)),
    "a wider complex number": given(turn=torch.ones(2, dtype=torch.complex128)),
}
WRONG = {
    "has int8 codes, without the scale": given(
        conv_weight=torch.ones(2, 1, 1, 1, dtype=torch.int8)
    ),
    "has float8_e4m3fn codes, without the scale": given(
        conv_weight=torch.ones(2, 1, 1, 1).to(torch.float8_e4m3fn)
    ),
    "bn.bias has int64 codes": given(bn_bias=torch.ones(2, dtype=torch.int64)),
    "bn.bias has bool for float32": given(bn_bias=torch.ones(2, dtype=torch.bool)),
    "bn.bias has complex64 for float32": given(bn_bias=torch.ones(2, dtype=torch.complex64)),
    "turn has float32 for complex64": given(turn=torch.ones(2)),
    "index has float32 for int64": given(index=torch.ones(2)),
    "keep has uint8 values that bool lacks": given(keep=torch.tensor([2, 0], dtype=torch.uint8)),
    "conv.weight is sparse (sparse_coo)": given(conv_weight=torch.ones(2, 1, 1, 1).to_sparse()),
    "conv.weight is quantized (qint8)": given(
        conv_weight=torch.quantize_per_tensor(torch.ones(2, 1, 1, 1), 0.1, 0, torch.qint8)
    ),
    "conv.weight has no values": given(conv_weight=torch.ones(2, 1, 1, 1, device="meta")),
    "bn.bias is no weight: 1 of 2 values is NaN": given(bn_bias=torch.tensor([0, torch.nan])),
    "conv.bias is no weight: 2 of 2 values are infinite": given(
        conv_bias=torch.tensor([-torch.inf, torch.inf])
    ),
    # Finite in the file, not in the network.
    "conv.bias is no weight: 1 of 2 values is infinite": given(
        conv_bias=torch.tensor([1e300, 0], dtype=torch.float64)
    ),
    "bn.running_var is no weight: 1 of 2 values is negative": given(
        bn_running_var=torch.tensor([1, -0.5])
    ),
    "mask is no weight: 1 of 2 values is NaN": given(mask=torch.tensor([0, torch.nan])),
}


@pytest.mark.parametrize("kind", FITTING)
def test_what_a_tensor_can_hold_exactly_or_rounded_is_loaded(tmp_path: Path, kind: str) -> None:
    torch.save(FITTING[kind], tmp_path / "w.pt")
    network = Net()
    apply_state(network, load_state(tmp_path / "w.pt", network.state_dict()).state_dict, "w.pt")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, FITTING[kind][name].to(tensor.dtype))


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_is_no_weight_is_refused_by_its_name_and_not_loaded(
    tmp_path: Path, fault: str
) -> None:
    torch.save(WRONG[fault], tmp_path / "w.pt")
    network = Net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(BadInput) as caught:
        apply_state(network, load_state(tmp_path / "w.pt", before).state_dict, tmp_path / "w.pt")
    assert caught.value.message.startswith(f"{tmp_path / 'w.pt'}: ")
    assert fault in caught.value.message
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_a_network_itself_is_held_to_the_same(tmp_path: Path) -> None:
    check_values(Net(), None, "net")
    broken = Net()
    broken.conv.weight.data[0] = torch.nan
    with pytest.raises(BadInput, match=r"net: conv\.weight is no weight: 1 of 2 values is NaN"):
        check_values(broken, None, "net")
    with pytest.raises(BadInput, match="has no values"), torch.device("meta"):
        check_values(nn.Linear(2, 2), None, "net")
    with pytest.raises(BadInput, match="is lazy"):
        check_values(nn.Sequential(nn.LazyLinear(2)), None, "net")
