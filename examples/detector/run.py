"""Train the detector, take it to FP16 and INT8, and judge all three by mAP; minutes on two cores.

    python examples/detector/run.py -o detector

Everything goes to the folder: pictures, checkpoint, ONNX files, and `report.html` with pictures and
boxes. FP16 and INT8 may lose half a point of mAP; where INT8 loses more, the layers that add most
noise are given back to FP16 (`--max-accuracy-drop`).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import network
import torch
from pictures import draw, save
from training import train

from cbam_deploy import convert, evaluate, export_onnx
from cbam_deploy.report.html import write_page
from cbam_deploy.terminal import show
from cbam_deploy.validation.accuracy_report import AccuracyReport

HERE = Path(__file__).parent
PREPROCESSING = f"stretch {network.SIZE}, rgb, /255"
MOST_DROP = 0.005


def main() -> None:
    """Run all of it and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("detector"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=300)
    options = parser.parse_args()
    trained(options.output, options.epochs, options.pictures, options.held_out)
    report = judged(options.output)
    show(report)
    if not report.passed:
        sys.exit(1)


def trained(
    folder: Path,
    epochs: int,
    pictures: int,
    held_out: int,
    factory: str = "detector",
    batch: int = 32,
) -> None:
    """Draw pictures and train on them: ``train``, ``val`` and ``detector.pt`` in `folder`."""
    import network

    torch.manual_seed(0)
    drawn = draw(pictures, held_out=False, seed=0)
    save(drawn, folder / "train")
    save(draw(held_out, held_out=True, seed=0), folder / "val")
    detector: network.Detector = getattr(network, factory)()
    begin = time.perf_counter()
    train(detector, drawn, epochs=epochs, batch=batch)
    sys.stderr.write(f"trained for {time.perf_counter() - begin:.0f} s\n")
    torch.save(detector.state_dict(), folder / "detector.pt")


def judged(folder: Path, factory: str = "detector", most_drop: float = MOST_DROP) -> AccuracyReport:
    """Export, convert within the budget, and judge what `trained` made, with a page."""
    fp32, fp16, int8 = (folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8"))
    export_onnx(
        f"{HERE / 'network.py'}:{factory}",
        fp32,
        weights=folder / "detector.pt",
        preprocessing=PREPROCESSING,
    )
    ranges = {"calibration": str(folder / "train" / "images")}
    convert(fp32, fp16, precision="fp16", **ranges)
    budget = {"max_accuracy_drop": most_drop, "data": str(folder / "val"), "metric": "map"}
    # Sides of boxes are told by the largest activations: none is clipped.
    show(convert(fp32, int8, precision="int8", method="minmax", **ranges, **budget))
    report = evaluate(
        [fp32, fp16, int8], data=str(folder / "val"), metric="map", max_drop=most_drop
    )
    write_page(report, folder / "report.html")
    return report


if __name__ == "__main__":
    main()
