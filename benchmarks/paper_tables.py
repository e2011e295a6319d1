"""The CBAM paper's parameters and multiply-adds beside ours: `docs/paper-tables.md`.

Source: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, tables 4
and 5. `make paper-tables` writes the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cbam_deploy.costs.measure import complexity
from cbam_deploy.errors import DeployError
from cbam_deploy.outputs import write_text
from cbam_deploy.progress import progress

ATTENTIONS = ("none", "se", "cbam")

# Millions of parameters and billions of multiply-adds with each of `ATTENTIONS`.
PAPER = {
    "resnet18": ((11.69, 1.814), (11.78, 1.814), (11.78, 1.815)),
    "resnet34": ((21.80, 3.664), (21.96, 3.664), (21.96, 3.665)),
    "resnet50": ((25.56, 3.858), (28.09, 3.860), (28.09, 3.864)),
    "resnet101": ((44.55, 7.570), (49.33, 7.575), (49.33, 7.581)),
    "wide_resnet18_1_5": ((25.88, 3.866), (26.07, 3.867), (26.08, 3.868)),
    "wide_resnet18_2_0": ((45.62, 6.696), (45.97, 6.696), (45.97, 6.697)),
    "resnext50_32x4d": ((25.03, 3.768), (27.56, 3.771), (27.56, 3.774)),
    "resnext101_32x4d": ((44.18, 7.508), (48.96, 7.512), (48.96, 7.519)),
    "mobilenet": ((4.23, 0.569), (5.07, 0.570), (5.07, 0.576)),
}

_INTRO = """\
# Parameters and multiply-adds, beside the CBAM paper's

Made by `make paper-tables`; a test makes it again and compares. The paper's figures are those of
its tables 4 and 5 (ImageNet, 224 x 224 pixels). Ours are counted by `cbam-deploy complexity MODEL
--attention none|se|cbam` from the PyTorch modules.

**What is counted.** Convolutions and linear layers, also those inside gates: one multiply-add for
each product with its addition. Biases, pooling, normalization, activations and elementwise products
and sums are not counted. Parameters are weights, biases and BatchNorm's scale and shift.
"""

_DIFFERENCES = """\
## Where the figures differ

- **Parameters** do not differ: every row agrees to the paper's two decimals.
- **Networks of bottlenecks** (ResNet-50 and -101, ResNeXt): ours have the stride in the 3x3
  convolution, as torchvision's have, whose checkpoints load into them. The paper's multiply-adds
  are those of the stride in the 1x1 convolution before it (He et al. 2016), which then runs at half
  the resolution. The column "stride in 1x1" counts our modules with the stride moved there.
- **MobileNet with CBAM**: {mobilenet}, {millions:.1f} M multiply-adds fewer than in the paper. It
  does not say where its MobileNet has gates; ours are where the parameters come out as in the
  paper. What makes the rest is not known.
- **The rest** is the paper's last digit.

An ONNX file counts a little less than the module it was exported from. BatchNorm is folded into the
convolutions, which leaves one bias in place of two parameters per channel, or none where that bias
is zero. And a gate's body multiplies the sum of the two hidden vectors by W1 once, where the module
multiplies each: C²/r products fewer per gate of C channels.
"""


@dataclass(frozen=True)
class Row:
    """One network with one attention: the paper's figures and ours.

    Attributes:
        network: of the zoo.
        attention: one of `ATTENTIONS`.
        paper_parameters: in millions; `parameters` likewise.
        paper_multiply_adds: in billions, for one picture; the next two likewise.
        multiply_adds: of our modules.
        moved: with the stride of bottlenecks in their first convolution; None without bottlenecks.
    """

    network: str
    attention: str
    paper_parameters: float
    parameters: float
    paper_multiply_adds: float
    multiply_adds: float
    moved: float | None

    @property
    def difference(self) -> float:
        """Of our multiply-adds from the paper's, as a fraction of the paper's."""
        return self.multiply_adds / self.paper_multiply_adds - 1

    @property
    def left(self) -> float:
        """What is left of it when the stride is where the paper has it."""
        ours = self.multiply_adds if self.moved is None else self.moved
        return ours / self.paper_multiply_adds - 1


def compare() -> tuple[Row, ...]:
    """Count every network of the paper's tables with every attention."""
    with progress() as bar:
        names = bar.track(PAPER, description="count")
        return tuple(row for name in names for row in _rows(name))


def page(rows: Iterable[Row]) -> str:
    """The page in Markdown."""
    rows = tuple(rows)
    last = next(row for row in rows if (row.network, row.attention) == ("mobilenet", "cbam"))
    differences = _DIFFERENCES.format(
        mobilenet=_percent(last.difference),
        millions=1e3 * (last.paper_multiply_adds - last.multiply_adds),
    )
    return "\n".join((_INTRO, *_table(rows), "", differences))


def _table(rows: tuple[Row, ...]) -> list[str]:
    """Parameters in millions, multiply-adds in billions."""
    lines = [
        "| network | attention | parameters (M), paper | ours | multiply-adds (G), paper | ours |"
        " difference | stride in 1x1 | difference left |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = (
            row.network,
            row.attention,
            f"{row.paper_parameters:.2f}",
            f"{row.parameters:.2f}",
            f"{row.paper_multiply_adds:.3f}",
            f"{row.multiply_adds:.3f}",
            _percent(row.difference),
            "" if row.moved is None else f"{row.moved:.3f}",
            _percent(row.left),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _percent(fraction: float) -> str:
    """Signed, and no difference as +0.00%."""
    return f"{round(100 * fraction, 2) + 0:+.2f}%"


def _rows(name: str) -> Iterator[Row]:
    moved = _with_stride_moved(name)
    for attention, figures in zip(ATTENTIONS, PAPER[name], strict=True):
        counted = complexity(name, attention=attention)
        # Gates see the same maps wherever the stride is.
        gates = sum(gate.multiply_adds for gate in counted.gates)
        yield Row(
            network=name,
            attention=attention,
            paper_parameters=figures[0],
            parameters=counted.parameters / 1e6,
            paper_multiply_adds=figures[1],
            multiply_adds=counted.multiply_adds / 1e9,
            moved=None if moved is None else (moved + gates) / 1e9,
        )


def _with_stride_moved(name: str) -> int | None:
    """Multiply-adds without gates, the stride in each bottleneck's first convolution."""
    import torch

    from cbam_deploy.models import create_model
    from cbam_deploy.models.resnet import Bottleneck

    with torch.device("meta"):
        model = create_model(name, attention="none").eval()
    bottlenecks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for block in bottlenecks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return complexity(model).multiply_adds if bottlenecks else None


def main() -> int:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    text = page(compare())
    try:
        if arguments.output:
            write_text(arguments.output, text)
        else:
            sys.stdout.write(text)
    except DeployError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
