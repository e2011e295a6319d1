"""Train a network on labelled pictures, keep the best weights, go on after an interruption."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cbam_deploy.data.source import ImageSource, check_workers
from cbam_deploy.exporters.convert import CALIBRATION_IMAGES
from cbam_deploy.exporters.int8.calibration import Method
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.models.checkpoints import load_state
from cbam_deploy.models.identity import load_identified, resolve_identity, resolve_preprocessing
from cbam_deploy.progress import progress as progress_bar
from cbam_deploy.provenance import ModelIdentity, Provenance, package_versions
from cbam_deploy.training.announcements import (
    UnreadablePictures,
    announce_epoch,
    announce_sets,
)
from cbam_deploy.training.augment import augmentation_for
from cbam_deploy.training.epoch import evaluate_epoch, train_epoch
from cbam_deploy.training.precision import MixedPrecision
from cbam_deploy.training.preparation import (
    check_outputs,
    choose_device,
    configuration,
    fastest_format,
    open_sets,
    with_classes,
)
from cbam_deploy.training.processes import Processes, batch_share, joined
from cbam_deploy.training.quantization import (
    Quantization,
    check_quantization,
    quantized_network,
)
from cbam_deploy.training.result import Epoch, TrainResult
from cbam_deploy.training.resumption import Learner, Progress
from cbam_deploy.training.run_folder import BEST, claimed, open_run, save_epoch
from cbam_deploy.training.settings import FINE_TUNING, Amp, Augmentation, Settings


def train(
    model: str,
    *,
    data: str,
    output: str | Path,
    val_data: str | None = None,
    attention: str | None = None,
    gate: GateSpec | None = None,
    stem: str | None = None,
    weights: str | Path | None = None,
    initial_gates: bool = False,
    image_size: int | None = None,
    epochs: int | None = None,
    batch_size: int = 256,
    lr: float | None = None,
    lr_step: int | None = None,
    lr_gamma: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    augmentation: Augmentation = "auto",
    seed: int = 0,
    amp: Amp = "none",
    workers: int | None = None,
    device: str | None = None,
    resume: bool = False,
    quantize: bool = False,
    calibration: str | None = None,
    method: Method = "percentile",
    images: int = CALIBRATION_IMAGES,
) -> TrainResult:
    """Train MODEL on labelled pictures by the paper's recipe, everything overridable.

    The same seed gives the same weights, bit for bit on CPUs with the same number of threads;
    resuming gives what an uninterrupted run gives. Ctrl-C loses the current epoch only.

    Under ``torchrun`` every process calls this with the same arguments. Each takes an equal part
    of every batch, the first one writes the files, and all get the same result. On GPUs BatchNorm
    sees the whole batch; on CPUs each process's part, with the first one's statistics kept.

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
        epochs: see `Settings`, as for the following up to `seed`. None for this, `lr` and
            `lr_step` is the recipe's, or with `quantize` that of `settings.FINE_TUNING`.
        batch_size: pictures a step, those of all processes together.
        lr: learning rate at the start.
        lr_step: epochs after which it changes.
        lr_gamma: what it is multiplied by then.
        momentum: of the gradient.
        weight_decay: on every parameter.
        augmentation: ``auto``, ``crop-flip``, ``shift`` or ``none``.
        seed: of initial weights, order and augmentation.
        amp: mixed precision, ``bf16`` or ``fp16`` (GPUs only); ``none`` for FP32 throughout.
        workers: threads of each process that decode pictures; default one per CPU core, divided
            by the processes on the machine, up to 8.
        device: ``cpu`` or ``cuda``; default CUDA where there is one.
        resume: go on with the run in `output`, which must have the same options; only `epochs`
            may differ.
        quantize: fine-tune `weights` with fake quantization (`training.quantization`), BatchNorm
            folded and dropout off; `export` then writes the INT8 file with the trained scales.
        calibration: SOURCE that activations' scales are first found on; None for the pictures of
            `data`.
        method: how: ``minmax``, ``entropy`` or ``percentile``.
        images: on how many.

    Raises:
        BadInput: options, data, checkpoint or folder cannot work.
        CheckFailed: the loss is no longer a number, or another process of the run ended early.
        MissingCapability: a package or the device is not there.
    """
    asked = ModelIdentity(
        name=model,
        attention=attention,
        gate=gate,
        stem=stem,
        seed=seed,
        weights=None if weights is None else str(weights),
        initial_gates=initial_gates,
    )
    length = {"epochs": epochs, "lr": lr, "lr_step": lr_step}
    settings = Settings(
        **(FINE_TUNING if quantize else {})
        | {name: value for name, value in length.items() if value is not None},
        batch_size=batch_size,
        lr_gamma=lr_gamma,
        momentum=momentum,
        weight_decay=weight_decay,
        augmentation=augmentation,
        seed=seed,
        amp=amp,
    )
    with joined() as processes:
        settings.check()
        quantization = Quantization(calibration, method, images) if quantize else None
        check_quantization(quantize, asked.weights, amp, calibration)
        check_workers(workers)
        batch_share(batch_size, processes)
        where = choose_device(device, processes)
        precision = MixedPrecision(amp, where)
        identity, recorded = resolve_identity(asked)
        preprocessing = resolve_preprocessing(identity, recorded, image_size=image_size)
        train_set, val_set = open_sets(data, val_data, preprocessing)
        identity = with_classes(identity, len(train_set.class_names), recorded)
        network, identity = load_identified(identity)
        fixed = configuration(identity, preprocessing, settings, train_set, quantization)
        check_outputs(network, identity.name, preprocessing, len(train_set.class_names))
        memory_format = fastest_format(network, preprocessing)
        quantized = None
        if quantization is not None:
            quantized = quantized_network(
                network, identity, quantization, train_set, seed, recorded
            )
        elif where.type == "cuda" and processes.count > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        trained = quantized or network
        trained.to(where, memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            quantized.parameter_groups() if quantized else network.parameters(),
            lr=settings.lr,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        provenance = Provenance(
            model=identity,
            preprocessing=preprocessing,
            class_names=train_set.class_names,
            calibration=quantized.facts if quantized else {},
            versions=package_versions("cbam-deploy", "torch"),
        )
        learner = Learner(network, optimizer, precision, quantized)
        folder = Path(output)
        with claimed(folder) if processes.leads else nullcontext():
            earlier = open_run(folder, fixed, learner, resume) if processes.leads else None
            epochs_done = _go_on(learner, processes.from_first(earlier))
            learning = _Learning(learner, settings, processes, workers)
            unreadable = UnreadablePictures(train_set, val_set)
            if processes.leads:
                announce_sets(train_set, val_set, batch_size)
            for epoch in _epochs(learning, train_set, val_set, len(epochs_done)):
                epochs_done = (*epochs_done, epoch)
                unreadable.warn()
                if processes.leads:
                    save_epoch(folder, learning.progress(epochs_done), fixed, provenance)
            best = folder / BEST
            if processes.leads:
                provenance = load_state(best).provenance or provenance
            provenance = processes.from_first(provenance)
        return TrainResult(
            output=str(folder),
            weights=str(best),
            provenance=provenance,
            epochs=epochs_done,
            started_from=identity.weights_origin,
            pictures=len(train_set),
            held_out=0 if val_set is None else len(val_set),
            skipped=unreadable.found,
        )


def _go_on(learner: Learner, earlier: Progress | None) -> tuple[Epoch, ...]:
    """Put what an earlier run came to into place; return its epochs."""
    if earlier is None:
        return ()
    learner.network.load_state_dict(earlier.model)
    if learner.quantized is not None:
        learner.quantized.load_scales(earlier.scales)
    learner.optimizer.load_state_dict(earlier.optimizer)
    learner.precision.restore(earlier.precision)
    return earlier.epochs


@dataclass(frozen=True)
class _Learning:
    """What the epochs of a run work with and change."""

    learner: Learner
    settings: Settings
    processes: Processes
    workers: int | None

    def progress(self, epochs: tuple[Epoch, ...]) -> Progress:
        """Where the run stands after `epochs`."""
        state = _copied(self.learner.network.state_dict())
        optimizer, precision = self.learner.optimizer, self.learner.precision
        scales = self.learner.quantized.scales() if self.learner.quantized else {}
        return Progress(state, optimizer.state_dict(), epochs, precision.state(), scales)


def _epochs(
    run: _Learning, train_set: ImageSource, val_set: ImageSource | None, done: int
) -> Iterator[Epoch]:
    """Learn for the epochs not done yet, under a progress bar; yield after each."""
    learner, settings = run.learner, run.settings
    workers = run.processes.workers(run.workers)
    augment = augmentation_for(settings.augmentation, train_set.name)
    steps = max(len(train_set) // settings.batch_size, 1)
    with progress_bar("loss", "accuracy", hidden=not run.processes.leads) as bar:
        task = bar.add_task("", total=settings.epochs * steps, loss="-", accuracy="-")
        bar.update(task, completed=done * steps)

        def report(loss: float, accuracy: float) -> None:
            bar.update(task, advance=1, loss=f"{loss:.4f}", accuracy=f"{accuracy:.2%}")

        for number in range(done, settings.epochs):
            bar.update(task, description=f"epoch {number + 1}/{settings.epochs}")
            started = time.perf_counter()
            learnt = train_epoch(
                learner.trained,
                learner.optimizer,
                learner.precision,
                train_set,
                settings,
                number,
                augment,
                run.processes,
                workers,
                report,
            )
            tested = None
            if val_set is not None:
                tested = evaluate_epoch(
                    learner.trained, val_set, settings.batch_size, run.processes, workers
                )
            epoch = Epoch(
                number=number + 1,
                lr=settings.lr_at(number),
                train_loss=learnt.loss,
                train_accuracy=learnt.accuracy,
                val_loss=tested.loss if tested else None,
                val_accuracy=tested.accuracy if tested else None,
                seconds=time.perf_counter() - started,
            )
            if run.processes.leads and not bar.console.is_terminal:
                announce_epoch(epoch, settings.epochs)
            yield epoch


def _copied(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two tensors sharing memory: as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
