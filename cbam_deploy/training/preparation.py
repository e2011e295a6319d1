"""What a run needs before its first step, and what is refused then."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cbam_deploy.data.open_source import open_source
from cbam_deploy.data.source import ImageSource
from cbam_deploy.data.splits import has_split
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.foreign_code import foreign_code
from cbam_deploy.models.factory import is_factory
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import ModelIdentity, Provenance
from cbam_deploy.training.processes import Processes
from cbam_deploy.training.quantization import Quantization
from cbam_deploy.training.settings import Settings


def choose_device(name: str | None, processes: Processes) -> torch.device:
    """The device `name` (``cpu``, ``cuda``, None for CUDA where there is one) of this process.

    Raises:
        BadInput: there is no such device.
        MissingCapability: the machine has fewer GPUs than processes.
    """
    if name not in (None, "cpu", "cuda"):
        raise BadInput(f"device {name!r} is unknown", "one of cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingCapability(
            "no CUDA device that this PyTorch can use", "leave --device out to train on the CPU"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes.count == 1:
        return torch.device("cuda")
    if processes.local_count > torch.cuda.device_count():
        raise MissingCapability(
            f"{processes.local_count} processes, and {torch.cuda.device_count()} GPUs",
            "give torchrun --nproc-per-node the number of GPUs",
        )
    device = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(device)
    return device


def open_sets(
    data: str, val_data: str | None, preprocessing: Preprocessing
) -> tuple[ImageSource, ImageSource | None]:
    """The pictures to learn from, and those to be tested on where there are such.

    Raises:
        BadInput: there are no labels, or classes to be tested on that are not learnt.
    """
    train_set = open_source(data, preprocessing, split="train")
    if train_set.ready:
        raise BadInput(f"{data}: training takes pictures", "give a folder of pictures, or digits")
    if train_set.labels is None:
        raise BadInput(
            f"{data}: the pictures have no labels", "put those of each class into a folder"
        )
    if len(np.unique(train_set.labels)) < 2:
        only = train_set.class_names[train_set.labels[0]]
        raise BadInput(
            f"{data}: all pictures are of one class, {only!r}",
            "give the folder whose subfolders are the classes",
        )
    if val_data is not None:
        val_set = open_source(val_data, preprocessing, split="test")
    elif data == "digits" or has_split(Path(data)):
        val_set = open_source(data, preprocessing, split="test")
    else:
        return train_set, None
    if val_set.labels is None:
        raise BadInput(
            f"{val_set.name}: the pictures have no labels to validate with",
            "put those of each class into a folder",
        )
    val_set.use_classes(train_set.class_names, of=train_set.name)
    return train_set, val_set


def with_classes(
    identity: ModelIdentity, classes: int, recorded: Provenance | None
) -> ModelIdentity:
    """`identity` with an output per class.

    Raises:
        BadInput: the checkpoint records another number. Of one that records nothing its tensors
            tell, when it is loaded.
    """
    if is_factory(identity.name) or identity.num_classes == classes:
        return identity
    if recorded is not None and recorded.model is not None:
        raise BadInput(
            f"{identity.weights}: is for {identity.num_classes} classes, the data have {classes}",
            "train without --weights, or on data of the same classes",
        )
    return replace(identity, num_classes=classes)


def configuration(
    identity: ModelIdentity,
    preprocessing: Preprocessing,
    settings: Settings,
    data: ImageSource,
    quantization: Quantization | None = None,
) -> dict[str, Any]:
    """What must not change in a run, flat: model, preprocessing, hyperparameters, data, INT8."""
    configuration = {
        "quantize": None if quantization is None else str(quantization),
        "model": identity.name,
        **asdict(identity),
        **asdict(preprocessing),
        **asdict(settings),
        "pictures": len(data),
        "class_names": list(data.class_names),
    }
    for left_out in ("name", "weights", "epochs"):  # Weights count by their hash.
        del configuration[left_out]
    return configuration


def check_outputs(
    network: nn.Module, name: str, preprocessing: Preprocessing, classes: int
) -> None:
    """Raise `BadInput` for a network that cannot learn, or that gives no logit per class."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise BadInput(f"{name}: has no parameters to learn", "give a network that has some")
    size = preprocessing.image_size
    what = f"{name}: running it on a picture of {size} x {size} pixels"
    with foreign_code(what, "try another --image-size"), torch.no_grad():
        picture = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
        logits = network.eval()(picture)
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != [1, classes]:
        raise BadInput(
            f"{name}: gives {shape} for one picture, where {classes} classes need [1, {classes}]",
            "change the factory's number of outputs",
        )


def fastest_format(network: nn.Module, preprocessing: Preprocessing) -> torch.memory_format:
    """Channels last, in which convolutions learn a quarter faster, where the network takes it.

    It does not where it relies on the order in memory, as by ``x.view(len(x), -1)``.
    """
    size = preprocessing.image_size
    device = next(network.parameters()).device
    other = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    picture = torch.zeros(2, 3, size, size, device=device)
    try:
        with torch.no_grad():
            other(picture.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last
