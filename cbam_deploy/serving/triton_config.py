"""The configuration of a model in Triton, as its own protobuf message has it.

The fields are described in Triton's documentation (docs/user_guide/model_configuration.md) and in
model_config.proto, which `tritonclient` carries compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cbam_deploy.artefacts import Artefact
from cbam_deploy.engines.source import DEFAULT_MAX_BATCH
from cbam_deploy.errors import BadInput, imports_for
from cbam_deploy.graphs.session import wrong_optimizers
from cbam_deploy.numerics.tensors import Feeds, TensorSpec

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

Backend = Literal["onnxruntime", "tensorrt", "python"]
LABELS = "labels.txt"
PICTURES = "PICTURES"
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
MODEL_FILES: dict[Backend, str] = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "python": "model.py",
}
_QUEUE_DELAY_MICROSECONDS = 100  # What a request waits at most for others to fill its batch.


@dataclass(frozen=True)
class Serving:
    """How models are served.

    Attributes:
        max_batch: largest batch; None for that of the engine's profile, or 64.
        instances: copies of the model that run at once.
        device: ``cpu`` or ``cuda``; None leaves it to Triton, or to what the backend can.
        threads: CPU threads of each instance; None leaves it to ONNX Runtime.
    """

    max_batch: int | None = None
    instances: int = 1
    device: str | None = None
    threads: int | None = None


def model_config_messages() -> Any:
    """The module of Triton's messages; raises `MissingCapability` without `tritonclient`."""
    with imports_for("writing Triton's configuration needs tritonclient", "triton"):
        from tritonclient.grpc import model_config_pb2
    return model_config_pb2


def largest_batch(artefact: Artefact, asked: int | None) -> int:
    """Triton's ``max_batch_size``; 0 where the batch is part of the model's shapes.

    Raises:
        BadInput: the artefact takes no such batch, or none of one sample among others.
    """
    axes = [spec.shape[:1] for spec in (*artefact.inputs, *artefact.outputs)]
    low, high = artefact.batch_range
    if low == high and (asked is None or asked == low):
        return 0
    if not all(axis and isinstance(axis[0], str) for axis in axes):
        if asked is not None:
            raise BadInput(
                f"{artefact.title}: its batch is fixed, so there is no largest one to choose",
                "leave --max-batch out, or export it with a free batch",
            )
        return 0
    if low > 1:
        raise BadInput(
            f"{artefact.title}: takes batches from {low} on, and requests come one by one",
            "build the engine with --min-batch 1",
        )
    if asked is not None and high is not None and asked > high:
        raise BadInput(
            f"{artefact.title}: takes batches up to {high}, not {asked}",
            "lower --max-batch, or build the engine with a larger one",
        )
    return asked or high or DEFAULT_MAX_BATCH


def preferred_batches(artefact: Artefact, largest: int) -> tuple[int, ...]:
    """Batches that the engine was built for: the best and the largest; of ONNX files none."""
    if artefact.opt_batch is None:
        return ()
    return tuple(sorted({size for size in (artefact.opt_batch, largest) if 1 < size <= largest}))


def network_config(
    name: str, artefact: Artefact, backend: Backend, serving: Serving
) -> ModelConfig:
    """The configuration of an artefact.

    Args:
        name: of the model.
        artefact: what is served.
        backend: what runs it.
        serving: how it is served.

    Raises:
        BadInput: as `largest_batch`, or a tensor is of a type that Triton has not.
        MissingCapability: tritonclient is not installed.
    """
    largest = largest_batch(artefact, serving.max_batch)
    config = _begin(name, largest)
    if backend == "python":
        config.backend = "python"
    else:
        config.platform = _PLATFORMS[backend]
    config.default_model_filename = MODEL_FILES[backend]
    for spec in artefact.inputs:
        _describe(config.input.add(), spec, batched=largest > 0)
    for spec in artefact.outputs:
        described = config.output.add()
        _describe(described, spec, batched=largest > 0)
        if labels_of(artefact, spec):
            described.label_filename = LABELS
    _set_instances(config, backend, serving)
    if largest > 1:
        batching = config.dynamic_batching
        batching.preferred_batch_size.extend(preferred_batches(artefact, largest))
        batching.max_queue_delay_microseconds = _QUEUE_DELAY_MICROSECONDS
    if backend == "python" and (wrong := wrong_optimizers(artefact.precision)):
        config.parameters["disabled_optimizers"].string_value = " ".join(wrong)
    if serving.threads is not None:
        config.parameters["intra_op_thread_count"].string_value = str(serving.threads)
    return config


def preprocessing_config(name: str, network: ModelConfig, serving: Serving) -> ModelConfig:
    """The configuration of the model that makes inputs of `network` from encoded pictures."""
    config = _begin(name, network.max_batch_size)
    config.backend = "python"
    config.default_model_filename = MODEL_FILES["python"]
    _take_pictures(config)
    (taken,) = network.input
    made = config.output.add(name=taken.name, data_type=taken.data_type)
    made.dims.extend(taken.dims)
    _set_instances(config, "python", serving)
    return config


def ensemble_config(name: str, preprocessing: ModelConfig, network: ModelConfig) -> ModelConfig:
    """The configuration of both in a row: from encoded pictures to the outputs of `network`."""
    config = _begin(name, network.max_batch_size)
    config.platform = "ensemble"
    _take_pictures(config)
    for output in network.output:
        config.output.add().CopyFrom(output)
    (taken,) = network.input
    first = config.ensemble_scheduling.step.add(model_name=preprocessing.name, model_version=-1)
    first.input_map[PICTURES] = PICTURES
    first.output_map[taken.name] = taken.name
    second = config.ensemble_scheduling.step.add(model_name=network.name, model_version=-1)
    second.input_map[taken.name] = taken.name
    for output in network.output:
        second.output_map[output.name] = output.name
    return config


def add_warmup(config: ModelConfig, sample: Feeds, batch: int, *, recorded: bool) -> None:
    """Let Triton run one batch before it calls the model ready.

    Args:
        config: of the model.
        sample: of each input by name, without its batch axis where Triton adds that.
        batch: its size.
        recorded: whether the samples lie in files; else they are noise, or zeros of integers.
    """
    warmup = config.model_warmup.add(name=f"batch {batch}", batch_size=batch)
    for described in config.input:
        array, fed = sample[described.name], warmup.inputs[described.name]
        fed.data_type = described.data_type
        fed.dims.extend(array.shape)
        if recorded:
            fed.input_data_file = warmup_file(config, described.name)
        elif array.dtype.kind == "f":
            fed.random_data = True
        else:
            fed.zero_data = True


def warmup_file(config: ModelConfig, name: str) -> str:
    """Name of the file with the sample of an input, as raw bytes."""
    return f"input{[one.name for one in config.input].index(name)}"


def labels_of(artefact: Artefact, output: TensorSpec) -> tuple[str, ...]:
    """Names of the classes, if `output` has one value for each; empty otherwise."""
    names = artefact.provenance.class_names if artefact.provenance else ()
    return names if len(output.shape) == 2 and output.shape[1] == len(names) else ()


def as_text(config: ModelConfig) -> str:
    """The content of ``config.pbtxt``."""
    from google.protobuf import text_format  # type: ignore[import-untyped]

    return str(text_format.MessageToString(config))


def _begin(name: str, largest: int) -> ModelConfig:
    config: ModelConfig = model_config_messages().ModelConfig(name=name, max_batch_size=largest)
    config.version_policy.latest.num_versions = 1
    return config


def _take_pictures(config: ModelConfig) -> None:
    pictures = config.input.add(name=PICTURES, data_type=_data_type("PICTURES", "object"))
    pictures.dims.extend([1] if config.max_batch_size else [-1])


def _describe(described: Any, spec: TensorSpec, *, batched: bool) -> None:
    described.name = spec.name
    described.data_type = _data_type(spec.name, spec.dtype)
    dims = _dims(spec.shape[1:] if batched else spec.shape)
    described.dims.extend(dims or [1])
    if not dims:  # Triton has no tensors without axes.
        described.reshape.SetInParent()


def _dims(shape: Sequence[int | str]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def _data_type(tensor: str, dtype: str) -> Any:
    """Triton's constant for NumPy's name of a type."""
    import numpy as np
    from tritonclient.utils import np_to_triton_dtype

    name = "BF16" if dtype == "bfloat16" else np_to_triton_dtype(np.dtype(dtype))
    if name is None:
        raise BadInput(f"{tensor}: Triton has no tensors of {dtype}", "export it in another type")
    return model_config_messages().DataType.Value(f"TYPE_{'STRING' if name == 'BYTES' else name}")


def _set_instances(config: ModelConfig, backend: Backend, serving: Serving) -> None:
    group = config.instance_group.add(count=serving.instances)
    kinds = {None: group.KIND_AUTO, "cpu": group.KIND_CPU, "cuda": group.KIND_GPU}
    default = {"python": "cpu", "tensorrt": "cuda"}.get(backend, serving.device)
    if serving.device not in (None, default):
        raise BadInput(
            f"{config.name}: the {backend} backend runs it on {default}, not on {serving.device}",
            "leave the device out",
        )
    group.kind = kinds[default]
