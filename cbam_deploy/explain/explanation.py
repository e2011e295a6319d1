"""`gradcam`: the paper's figure for given pictures, and the attention of the deployed files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cbam_deploy.data import Batch, ImageSource, open_source
from cbam_deploy.data.class_names import match_classes
from cbam_deploy.errors import BadInput
from cbam_deploy.explain.grad_cam import grad_cam, logits_of
from cbam_deploy.explain.networks import Network, open_networks
from cbam_deploy.explain.overlay import Picture, overlay, picture
from cbam_deploy.explain.result import Agreement, Answer, Explained, GradCamReport
from cbam_deploy.explain.spatial_maps import SpatialMaps, correlation, spatial_maps
from cbam_deploy.outputs import atomic_output
from cbam_deploy.preprocessing.choice import Asked
from cbam_deploy.report.html import write_page
from cbam_deploy.report.picture_grid import Row, Tile, picture_grid

_LONGEST_NAME = 100  # characters of a file name, as file systems take them
Drawn = tuple[str, tuple[Row, ...]]  # Name and rows of one figure.


def gradcam(
    networks: str | Sequence[str],
    output: str | Path,
    *,
    data: str,
    preprocessing: Asked | None = None,
    artefacts: Sequence[str | Path] = (),
    images: int = 6,
    image_size: int | None = None,
    layer: str | None = None,
    seed: int = 0,
) -> GradCamReport:
    """Explain what networks look at, and whether their deployed files look there too.

    Writes `output`/gradcam.html, gradcam.png (a column per picture: the picture, then one row per
    network with Grad-CAM over it, and P), and with `artefacts` attention-*.png, for the last gate
    of each map size: the spatial attention M_s of every file.

    Args:
        networks: each a checkpoint of `train`, MODEL=CHECKPOINT, or MODEL with its initial weights.
        output: folder to write to; made if missing.
        data: SOURCE; of one with a split, the held-out part.
        preprocessing: how inputs are made from pictures (`preprocessing.choice.Asked`); None for
            what the checkpoints record, else ImageNet's.
        artefacts: ONNX files with fused CBAM gates, the most exact first.
        images: how many pictures, drawn by `seed`.
        image_size: side of the network's input, where the checkpoint does not say.
        layer: path of the module to explain; None for the last convolutional output.
        seed: of the draw.

    Raises:
        BadInput: a network, file or SOURCE cannot be read, they do not fit together, or `output`
            cannot be written.
        MissingCapability: matplotlib, Pillow or scikit-learn is missing.
    """
    texts = [networks] if isinstance(networks, str) else list(networks)
    if not texts:
        raise BadInput("no network to explain", "name a checkpoint")
    opened = open_networks(texts, image_size, preprocessing)
    prepared = opened[0].preprocessing
    source = open_source(data, prepared, split="test")
    if source.ready:
        raise BadInput(f"{data}: explaining takes pictures", "give a folder of pictures, or photos")
    batch = next(source.batches(images, limit=images, shuffle_seed=seed))
    explained, figures = [], []
    shown = [picture(image, prepared) for image in batch.images]
    rows = [Row("", tuple(Tile(image) for image in shown))]
    for network in opened:
        entry, row = _explain(network, batch, source, shown, layer)
        explained.append(entry)
        rows.append(row)
    figures.append(("gradcam", tuple(rows)))
    attended = {
        str(path): spatial_maps(path, batch.images, prepared, as_recorded=preprocessing is None)
        for path in map(Path, artefacts)
    }
    figures += _attention_figures(attended, shown)
    answers = [
        Explained(name, "", _answers(name, maps.logits, batch, source, maps.class_names))
        for name, maps in attended.items()
    ]
    labels = _labels(batch, source)
    return _write(
        Path(output),
        labels,
        figures,
        data=data,
        networks=tuple(explained),
        artefacts=tuple(answers),
        agreements=tuple(_agreements(attended)),
    )


def _explain(
    network: Network,
    batch: Batch,
    source: ImageSource,
    shown: list[Picture],
    layer: str | None,
) -> tuple[Explained, Row]:
    """Answers of one network, and its row of the figure: each map from zero to its largest."""
    images = torch.from_numpy(batch.images)
    known = network.class_names
    width = len(known or source.class_names) or None
    with torch.no_grad():
        # A copy: a network may write into what it is given.
        logits = logits_of(network.module, images.clone(), width).double().numpy()
    classes = _classes(network.label, logits, batch, source, known)
    found = grad_cam(network.module, images, torch.from_numpy(classes), layer, width)
    answers = _answers(network.label, logits, batch, source, known)
    tiles = tuple(
        Tile(overlay(image, heat, 0.0, float(heat.max())), *note_of(answer))
        for image, heat, answer in zip(shown, found.maps.numpy(), answers, strict=True)
    )
    return Explained(network.label, found.layer, answers), Row(network.label, tiles)


def _classes(
    name: str,
    logits: NDArray[np.float64],
    batch: Batch,
    source: ImageSource,
    known: tuple[str, ...],
) -> NDArray[np.int64]:
    """The true class of each picture among the network's, the predicted one without labels."""
    if batch.labels is None:
        return np.asarray(logits.argmax(1), np.int64)
    classes = match_classes(name, known, logits.shape[1], source.class_names, source.name)
    return classes[batch.labels]


def _answers(
    name: str,
    logits: NDArray[np.float64],
    batch: Batch,
    source: ImageSource,
    known: tuple[str, ...],
) -> tuple[Answer, ...]:
    classes = _classes(name, logits, batch, source, known)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    names = known or (source.class_names if batch.labels is not None else ())
    return tuple(
        Answer(
            probability=float(row[true]),
            predicted=names[row.argmax()] if len(names) == len(row) else str(row.argmax()),
            right=None if batch.labels is None else bool(row.argmax() == true),
        )
        for row, true in zip(probabilities, classes, strict=True)
    )


def note_of(answer: Answer) -> tuple[str, bool]:
    """What stands below a tile, and whether it is wrong."""
    wrong = answer.right is False
    note = f"P = {answer.probability:.2f}" if answer.probability >= 0.005 else "P < 0.01"
    return (f"{note}\nsays {answer.predicted}" if wrong else note), wrong


def _attention_figures(attended: dict[str, SpatialMaps], shown: list[Picture]) -> list[Drawn]:
    """One figure for the last gate of each size, all files on the first one's scale."""
    if not attended:
        return []
    first = next(iter(attended.values()))
    last_of_size = {maps.shape[1:]: gate for gate, maps in first.maps.items()}
    figures = []
    for gate in last_of_size.values():
        rows = [Row("", tuple(Tile(image) for image in shown))]
        for name, maps in attended.items():
            _check_gate(name, gate, maps, first)
            tiles = (
                Tile(overlay(image, heat, float(scale.min()), float(scale.max())))
                for image, heat, scale in zip(shown, maps.maps[gate], first.maps[gate], strict=True)
            )
            rows.append(Row(name, tuple(tiles)))
        figures.append((f"attention-{gate}", tuple(rows)))
    return figures


def _agreements(attended: dict[str, SpatialMaps]) -> list[Agreement]:
    if not attended:
        return []
    (_, first), *others = attended.items()
    entries = []
    for name, maps in others:
        for gate, reference in first.maps.items():
            _check_gate(name, gate, maps, first)
            own = maps.maps[gate]
            height, width = reference.shape[1:]
            entries.append(
                Agreement(
                    artefact=name,
                    gate=gate,
                    size=(height, width),
                    correlation=correlation(reference, own),
                    max_abs=float(np.abs(own - reference).max()),
                )
            )
    return entries


def _check_gate(name: str, gate: str, maps: SpatialMaps, first: SpatialMaps) -> None:
    if gate not in maps.maps or maps.maps[gate].shape != first.maps[gate].shape:
        raise BadInput(
            f"{name}: lacks the gate {gate} of the first file", "give files of the same network"
        )


def _labels(batch: Batch, source: ImageSource) -> tuple[str, ...]:
    if batch.labels is None:
        return ("",) * len(batch.images)
    return tuple(source.class_names[label] for label in batch.labels)


def file_name(figure: str, earlier: Sequence[Path]) -> str:
    """A name of letters, digits, dots and dashes for a figure, whose own an ONNX file may hold."""
    name = re.sub(r"[^\w.-]", "-", figure, flags=re.ASCII)[:_LONGEST_NAME]
    taken = {path.stem for path in earlier}
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(free for free in names if free not in taken)


def _write(
    folder: Path, labels: tuple[str, ...], figures: list[Drawn], **found: Any
) -> GradCamReport:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be a folder ({error.strerror})", "name another"
        ) from error
    svgs = {}
    files: list[Path] = []
    for name, rows in figures:
        svg, png = picture_grid(rows, labels)
        svgs[name] = svg
        files.append(folder / f"{file_name(name, files)}.png")
        with atomic_output(files[-1]) as temporary:
            temporary.write_bytes(png)
    page = folder / "gradcam.html"
    report = GradCamReport(
        page=str(page), figures=tuple(map(str, files)), labels=labels, svgs=svgs, **found
    )
    write_page(report, page)
    return report
