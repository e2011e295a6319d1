"""Train a network on labelled pictures, keep the best weights, go on after an interruption."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cbam_deploy.data.folders import has_split
from cbam_deploy.data.opening import open_source
from cbam_deploy.data.preprocessing import Preprocessing
from cbam_deploy.data.source import ImageSource
from cbam_deploy.errors import BadInput, MissingCapability
from cbam_deploy.models.checkpoints import load_state
from cbam_deploy.models.factory import is_factory
from cbam_deploy.models.identity import load_model, resolve_identity, resolve_preprocessing
from cbam_deploy.models.spec import GateSpec
from cbam_deploy.progress import progress as progress_bar
from cbam_deploy.provenance import ModelIdentity, Provenance, package_versions
from cbam_deploy.training.augment import augmentation_for
from cbam_deploy.training.epoch import test_epoch, train_epoch
from cbam_deploy.training.result import Epoch, TrainResult
from cbam_deploy.training.run_folder import BEST, Progress, open_run, save_epoch
from cbam_deploy.training.settings import Augmentation, Settings


def train(
    model: str,
    *,
    data: str,
    output: str | Path,
    val_data: str | None = None,
    attention: str | None = None,
    gate: GateSpec | None = None,
    stem: str | None = None,
    weights: str | None = None,
    initial_gates: bool = False,
    image_size: int | None = None,
    epochs: int = 90,
    batch_size: int = 256,
    lr: float = 0.1,
    lr_step: int = 30,
    lr_gamma: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    augmentation: Augmentation = "auto",
    seed: int = 0,
    workers: int | None = None,
    device: str | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train MODEL on labelled pictures by the paper's recipe, everything overridable.

    The same seed gives the same weights, bit for bit on CPUs with the same number of threads;
    resuming gives what an uninterrupted run gives. Ctrl-C loses the current epoch only.

    Args:
        model: a name of the zoo, which gets as many outputs as there are classes, or a factory.
        data: SOURCE with labels. ``digits`` and folders with ``train`` and ``val`` inside bring
            their validation pictures along.
        output: folder for ``best.safetensors``, ``last.pt`` and ``history.json``.
        val_data: SOURCE to choose the best epoch by; without any, the last epoch is kept.
        attention: ``cbam`` (default), ``se`` or ``none``.
        gate: another variant of the gate.
        stem: ``imagenet`` or ``cifar``; default as the network has it.
        weights: checkpoint to start from instead of initial weights.
        initial_gates: let gates start from initial weights where the checkpoint has none.
        image_size: side of the input in pixels; default 224, or 32 with the CIFAR stem.
        epochs: see `Settings`, as for the following up to `seed`.
        batch_size: pictures a step.
        lr: learning rate at the start.
        lr_step: epochs after which it changes.
        lr_gamma: what it is multiplied by then.
        momentum: of the gradient.
        weight_decay: on every parameter.
        augmentation: ``auto``, ``crop-flip``, ``shift`` or ``none``.
        seed: of initial weights, order and augmentation.
        workers: threads that decode pictures; default one per CPU core, up to 8.
        device: ``cpu`` or ``cuda``; default CUDA where there is one.
        resume: go on with the run in `output`, which must have the same options; only `epochs`
            may differ.

    Raises:
        BadInput: options, data, checkpoint or folder cannot work.
        CheckFailed: the loss is no longer a number.
        MissingCapability: a package or the device is not there.
    """
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        lr_step=lr_step,
        lr_gamma=lr_gamma,
        momentum=momentum,
        weight_decay=weight_decay,
        augmentation=augmentation,
        seed=seed,
    )
    settings.check()
    place = _device(device)
    identity, recorded = resolve_identity(
        model,
        attention=attention,
        gate=gate,
        stem=stem,
        seed=seed,
        weights=weights,
        initial_gates=initial_gates,
    )
    preprocessing = resolve_preprocessing(identity, recorded, image_size=image_size)
    train_set, val_set = _open_sets(data, val_data, preprocessing)
    identity = _with_classes(identity, len(train_set.class_names))
    configuration = _configuration(identity, preprocessing, settings, train_set)
    network = load_model(identity)
    network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_outputs(network, identity.name, preprocessing, len(train_set.class_names))
    folder = Path(output)
    earlier = open_run(folder, configuration, resume)

    optimizer = torch.optim.SGD(
        network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    epochs_done: tuple[Epoch, ...] = ()
    if earlier is not None:
        network.load_state_dict(earlier.model)
        optimizer.load_state_dict(earlier.optimizer)
        epochs_done = earlier.epochs
    provenance = Provenance(
        model=identity,
        preprocessing=preprocessing,
        class_names=train_set.class_names,
        versions=package_versions("cbam-deploy", "torch"),
    )
    for epoch in _learn(
        network, optimizer, train_set, val_set, settings, workers, len(epochs_done)
    ):
        epochs_done = (*epochs_done, epoch)
        progress = Progress(_copied(network.state_dict()), optimizer.state_dict(), epochs_done)
        save_epoch(folder, progress, configuration, provenance)
    best = folder / BEST
    recorded = load_state(best).provenance
    return TrainResult(
        output=str(folder),
        weights=str(best),
        provenance=recorded or provenance,
        epochs=epochs_done,
        started_from=identity.weights_origin,
    )


def _learn(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_set: ImageSource,
    val_set: ImageSource | None,
    settings: Settings,
    workers: int | None,
    done: int,
) -> Iterator[Epoch]:
    """Learn for the epochs not done yet, under a progress bar; yield after each."""
    augment = augmentation_for(settings.augmentation, train_set.name)
    steps = max(len(train_set) // settings.batch_size, 1)
    with progress_bar("loss", "accuracy") as bar:
        task = bar.add_task("", total=settings.epochs * steps, loss="-", accuracy="-")
        bar.update(task, completed=done * steps)

        def report(loss: float, accuracy: float) -> None:
            bar.update(task, advance=1, loss=f"{loss:.4f}", accuracy=f"{accuracy:.2%}")

        for number in range(done, settings.epochs):
            bar.update(task, description=f"epoch {number + 1}/{settings.epochs}")
            started = time.perf_counter()
            learnt = train_epoch(
                network, optimizer, train_set, settings, number, augment, workers, report
            )
            tested = None
            if val_set is not None:
                tested = test_epoch(network, val_set, settings.batch_size, workers)
            yield Epoch(
                number=number + 1,
                lr=settings.lr_at(number),
                train_loss=learnt.loss,
                train_accuracy=learnt.accuracy,
                val_loss=tested.loss if tested else None,
                val_accuracy=tested.accuracy if tested else None,
                seconds=time.perf_counter() - started,
            )


def _device(name: str | None) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise BadInput(f"device {name!r} is unknown", "one of cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingCapability(
            "no CUDA device that this PyTorch can use", "leave --device out to train on the CPU"
        )
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _open_sets(
    data: str, val_data: str | None, preprocessing: Preprocessing
) -> tuple[ImageSource, ImageSource | None]:
    train_set = open_source(data, preprocessing, split="train")
    if train_set.labels is None:
        raise BadInput(
            f"{data}: the pictures have no labels", "put those of each class into a folder"
        )
    if val_data is not None:
        val_set = open_source(val_data, preprocessing, split="test")
    elif data == "digits" or has_split(Path(data)):
        val_set = open_source(data, preprocessing, split="test")
    else:
        return train_set, None
    if val_set.class_names != train_set.class_names:
        raise BadInput(
            f"{val_set.name}: the classes are not those of {train_set.name}",
            "use the same class folders for validation",
        )
    return train_set, val_set


def _with_classes(identity: ModelIdentity, classes: int) -> ModelIdentity:
    if is_factory(identity.name) or identity.num_classes == classes:
        return identity
    if identity.weights is not None:
        raise BadInput(
            f"{identity.weights}: is for {identity.num_classes} classes, the data have {classes}",
            "train without --weights, or on data of the same classes",
        )
    return replace(identity, num_classes=classes)


def _configuration(
    identity: ModelIdentity, preprocessing: Preprocessing, settings: Settings, data: ImageSource
) -> dict[str, Any]:
    """What must not change in a run, flat: model, preprocessing, hyperparameters, data."""
    configuration = {
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


def _check_outputs(
    network: nn.Module, name: str, preprocessing: Preprocessing, classes: int
) -> None:
    """Refuse a network that cannot take the pictures or does not give a logit per class."""
    size = preprocessing.image_size
    picture = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    try:
        with torch.no_grad():
            logits = network.eval()(picture)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"{name}: fails on a picture of {size} x {size} pixels ({reason})",
            "try another --image-size",
        ) from error
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != [1, classes]:
        raise BadInput(
            f"{name}: gives {shape} for one picture, where {classes} classes need [1, {classes}]",
            "change the factory's number of outputs",
        )


def _copied(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two tensors sharing memory: as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
