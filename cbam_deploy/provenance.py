"""Where an artefact comes from: enough to rebuild its PyTorch reference and repeat its making.

ONNX files carry it as one JSON text in `metadata_props` under `METADATA_KEY`; an engine's manifest
carries the same JSON.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.json_data import parse, read
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.preprocessing.text import text_of
from cbam_deploy.version import __version__

METADATA_KEY = "cbam_deploy.provenance"
SCHEMA_VERSION = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
_SHOWN = 20  # Names of classes that a table has room for; the JSON has all.
LARGEST = 10**6  # What no picture's side and no number of classes exceeds.


@dataclass(frozen=True)
class ModelIdentity:
    """Which PyTorch model: as a person asks for it, and settled, as what rebuilds it.

    What a person leaves out, `models.identity.resolve_identity` settles. The hash proves that the
    model rebuilt is the same one.

    Attributes:
        name: MODEL as given: a zoo name, ``package.module:factory`` or ``path/file.py:factory``.
        attention: ``cbam``, ``se`` or ``none``; None for a factory, which decides for itself.
        gate: the gate variant, where `attention` is not ``none``.
        num_classes: outputs of the classifier; None for a factory.
        stem: ``imagenet`` or ``cifar``; None for a factory.
        seed: seed of the initial weights.
        weights: checkpoint file as given, None for initial weights.
        weights_sha256: hash of the state dict's content (`models.checkpoints.state_dict_sha256`).
        naming: how the checkpoint names the tensors of its gates (`models.checkpoint_names`); None
            without a checkpoint, and for a factory, whose names are its own.
        initial_gates: whether gates keep their initial weights, as the checkpoint has none.
    """

    name: str
    attention: str | None = None
    gate: GateSpec | None = None
    num_classes: int | None = None
    stem: str | None = None
    seed: int = 0
    weights: str | None = None
    weights_sha256: str | None = None
    naming: str | None = None
    initial_gates: bool = False

    @property
    def weights_origin(self) -> str:
        """Where its weights come from, for a report."""
        if self.weights is None:
            # A factory may have loaded weights of its own.
            made = "as the factory made them" if ":" in self.name else "initial"
            return f"{made}, seed {self.seed}"
        naming = f", naming: {self.naming}" if self.naming else ""
        gates = f"; gates are initial, seed {self.seed}" if self.initial_gates else ""
        return f"{self.weights}{naming}{gates}"

    def refuse_options(self, what: str, hint: str) -> None:
        """Raise `BadInput` where it says more than name and seed, which cannot change `what`."""
        if self.options:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in self.options)
            raise BadInput(f"{given} cannot change {what}", hint)

    @property
    def options(self) -> dict[str, Any]:
        """What is said of it beside its name and seed, by field."""
        silent = vars(ModelIdentity(self.name, seed=self.seed))
        return {key: value for key, value in vars(self).items() if value != silent[key]}


@dataclass(frozen=True)
class Lowering:
    """What a file was lowered from, and for what.

    Attributes:
        source: name of the file that runs elsewhere too.
        source_sha256: its hash.
        targets: compute capabilities that there are kernels for, such as ``sm_87``.
        tensorrt: version of TensorRT from which on it is to be built, such as ``10.3``.
    """

    source: str
    source_sha256: str
    targets: tuple[str, ...]
    tensorrt: str


@dataclass(frozen=True)
class Provenance:
    """The history of one artefact.

    Attributes:
        model: the PyTorch model it was exported from.
        preprocessing: how its inputs are made from pictures.
        sizes: typical size of each free axis of the inputs but the batch, by the axis's name.
        class_names: names of the classes in output order; empty when unknown.
        precision: one of `PRECISIONS`.
        gates: number of fused gate nodes, by operator name.
        calibration: source, images, seed and method of the ranges behind scales, or behind the
            range check of FP16 and BF16; empty where there was no calibration. `trained_epochs` of
            training with fake quantization came after.
        trained_scales: of a checkpoint that was trained so: the scale of each activation, by tensor
            of the ONNX file.
        tolerance: error over the largest output that a person allowed between the file and PyTorch
            when it was exported; None where the usual bound held.
        lowered: for a file whose gates are nodes of TensorRT's plugin, what it was made of.
        versions: versions of the packages that made it.
    """

    model: ModelIdentity | None = None
    preprocessing: Preprocessing | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    precision: str = "fp32"
    gates: dict[str, int] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    trained_scales: dict[str, float] = field(default_factory=dict)
    tolerance: float | None = None
    lowered: Lowering | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data; `from_json` reads it back."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Provenance:
        """Read what `to_json` wrote, whatever `data` is.

        Raises:
            BadInput: `data` is of another schema version or malformed.
        """
        hint = "make the file again with this version of cbam-deploy"
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            shown = version if isinstance(version, int) else "unknown"
            raise BadInput(f"provenance of schema {shown}, expected {SCHEMA_VERSION}", hint)
        fields = {key: value for key, value in data.items() if key != "schema_version"}
        try:
            if missing := {"model", "preprocessing", "class_names"} - fields.keys():
                raise ValueError(f"it lacks {min(missing)!r}")
            return _meaningful(read(cls, fields))
        except ValueError as error:
            raise BadInput(f"provenance is malformed ({error})", hint) from error

    def dumps(self) -> str:
        """`to_json` as text."""
        return json.dumps(self.to_json())

    @classmethod
    def loads(cls, text: str) -> Provenance:
        """Read what `dumps` wrote; raises `BadInput` like `from_json`."""
        try:
            data = parse(text)
        except ValueError as error:
            raise BadInput(f"provenance is not JSON ({error})", "make the file again") from error
        return cls.from_json(data)

    def facts(self) -> list[tuple[str, str]]:
        """Names and values for a reader; what is not known is empty."""
        model, pictures = self.model or ModelIdentity(""), self.preprocessing
        attention = f" + {model.attention}" if model.attention else ""
        weights = self.model.weights_origin if self.model else ""
        tolerance = "" if self.tolerance is None else f"{self.tolerance} of the largest output"
        return [
            ("model", model.name + attention),
            ("gate", model.gate.label if model.gate else ""),
            ("classes", "" if model.num_classes is None else str(model.num_classes)),
            ("stem", model.stem or ""),
            ("weights", weights),
            ("weights sha256", model.weights_sha256 or ""),
            ("preprocessing", "not recorded" if pictures is None else text_of(pictures)),
            ("class names", _listed(self.class_names)),
            ("typical sizes", ", ".join(f"{name}={size}" for name, size in self.sizes.items())),
            ("calibration", ", ".join(f"{name} {v}" for name, v in self.calibration.items())),
            ("tolerance at export", tolerance),
            ("lowered from", self.lowered.source if self.lowered else ""),
            ("for", _built_by(self.lowered) if self.lowered else ""),
            ("made with", ", ".join(f"{name} {v}" for name, v in self.versions.items())),
        ]


def _built_by(lowered: Lowering) -> str:
    return f"{', '.join(lowered.targets)}, TensorRT {lowered.tensorrt} and later"


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _meaningful(provenance: Provenance) -> Provenance:
    """`provenance`, if its values are among those that there are; else ValueError."""
    model = provenance.model
    choices: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "precision": (provenance.precision, PRECISIONS)
    }
    counts: dict[str, int | None] = dict(provenance.sizes)
    if model is not None:
        choices["attention"] = model.attention, (None, "cbam", "se", "none")
        choices["stem"] = model.stem, (None, "imagenet", "cifar")
        counts["num_classes"] = model.num_classes
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} is none of {', '.join(map(str, allowed))}")
    for name, count in counts.items():
        if count is not None and not 1 <= count <= LARGEST:
            raise ValueError(f"{name} is out of range")
    for name, scale in provenance.trained_scales.items():
        if not 0 < scale < math.inf:
            raise ValueError(f"the scale of {name} is not a positive number")
    return provenance


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions; those not installed are left out."""
    found = {}
    for name in names:
        try:
            # Of an editable installation the metadata are as old as the installation.
            own = name == "cbam-deploy"
            found[name] = __version__ if own else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
