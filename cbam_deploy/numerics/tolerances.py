"""What parity means in each precision: every tolerance of the package, and where it comes from.

The deepest network that the defaults have to hold for is CBAM-ResNet-50: L = 53 convolutions in a
row, the longest sum of which has n = 9 * 512 = 4608 terms. u is the unit roundoff. Rounding a value
has a relative error of at most u, of 0.42 u in the root mean square (over the mantissas 1 to 2).
Errors are independent, so their squares add up (Higham and Mary, "A new approach to probabilistic
rounding error analysis", SIAM J. Sci. Comput. 41, 2019). The largest error of many elements is as
many standard deviations from zero as the largest of the values themselves, so a relative root mean
square error is also the largest error over the largest value.

**fp32** (u = 2^-24 = 6.0e-8). Two correct programs differ in the order of their sums. A sum of n
terms of size s has partial sums of size s sqrt(k), each of which is rounded: 0.42 u s sqrt(1 + 2 +
... + n) = 0.42 u s n / sqrt(2) on a result of size s sqrt(n), in both programs: together 0.42 u
sqrt(n) = 1.7e-6. Over L layers that is sqrt(L) * 1.7e-6 = 1.2e-5 if errors are independent, and
L * 1.7e-6 = 9e-5 if they all went the same way: outputs are held to 1e-4 of the largest reference
value. TF32 (u = 2^-11 for products) does not pass, and is not FP32.

A network can magnify rounding by more than its depth does, where it divides by a small deviation or
takes a small difference of large terms. Its own error in PyTorch, FP32 against FP64, says by how
much. A program that sums in another order has an error of that kind too, and the largest of a few
elements is a few times less in one program than in the other by chance: where outputs are further
apart than 1e-4, five times PyTorch's own error is allowed, up to 1e-2. Beyond that FP32 says too
little for a file to be told from a wrong one. Outputs in FP16 may lie one of its steps apart.

**fp16** (u = 2^-11 = 4.9e-4, sums in FP32). Input, weight and output of each layer are rounded:
0.42 u sqrt(3) = 3.6e-4. Independent over L layers: sqrt(L) * 3.6e-4 = 2.6e-3, a cosine of
1 - (2.6e-3)^2 / 2 = 0.999997; 0.9999 allows five times that noise. All going the same way:
L * 3.6e-4 = 1.9e-2, so no element may be off by more than 2e-2 of the largest reference value.

**bf16** (u = 2^-8, sums in FP32) has three bits less: eight times the errors of fp16. No element
may be off by more than 0.16 of the largest reference value, and as 1 - cosine is quadratic in the
noise, it may be 64 times as far from 1: 0.9936.

**int8**. 20 dB, a noise of a tenth of the signal. The step of a tensor with largest value m is
m / 127, its noise step^2 / 12. A tensor whose root mean square is m / 10 keeps
10 log10(12 * 127^2 / 100) = 33 dB, which twenty quantized tensors whose noise reaches the output in
full (13 dB) bring down to the bound. The maximum error is not bounded: one clipped outlier may be
far off in a network that classifies well.

**fp8** (E4M3, u = 2^-4). Rounding a tensor makes a noise of 0.42 u, 31.6 dB below it whatever its
distribution, as long as it stays clear of the smallest exponents: 1.4 dB more than int8 has by the
same count. Twenty such tensors bring it down to 18 dB.

**The same rounding.** In bf16 and fp8 PyTorch itself is rounded like the file, value by value
(`validation.rounded_reference`). Both then differ only where a sum in another order falls to the
other side of a half. How far that goes, growing from layer to layer, PyTorch says too: rounded
alike with sums in FP32 and in FP64. Five times that noise is allowed, as between FP32 and FP64.
Where few values are so near a half, five times next to nothing would leave too little to chance:
noise of half of what the rounding itself makes is allowed in any case. (A value that falls to the
other side is off by a whole step, sqrt(12) times what rounding it makes, so that takes one value in
fifty.) Where the file rounds values that PyTorch has not, such as the sigmoid within SiLU, their
noise is added: as much as PyTorch's own is allowed twice over. So it is on few samples, where
PyTorch may have no value near a half and the file one; the spread is the largest of all batches.

**Channels.** All of this is about a tensor as a whole. A detector's scores next to its boxes are a
thousandth of it, and could be all zero within these bounds. So each channel of a tensor
(`numerics.channels` says what that is) is also held against its own signal: its signal-to-noise
ratio is at least 30 dB in fp32, 10 dB in fp16 and bf16, 3 dB in int8 and fp8, while a channel that
is not computed at all has 0 dB. A channel may be a difference of terms that are larger than it:
noise of 1.2e-5, 2.6e-3 and 0.1, as above, leaves that ratio to channels 2600, 120 and 7 times
smaller than their terms; 2.1e-2 in bf16 to those 15 times smaller, 0.13 in fp8 to those 5 times.
Noise that is not more than twice what the precision makes anyway in the channel's part of the
tensor, 2.4e-5, 5.2e-3, 4.2e-2 (bf16), 0.2 and 0.25 (fp8) of its root mean square, has no bound:
nothing tells a channel that small from rounding. Neither has a part of the tensor whose values are
all below 2^-20 in fp16, where steps of 2^-24 leave too little of them, or below 2^-12 in int8 and
fp8: probabilities of what is nowhere in a picture, which noise in their logits multiplies.

**Layers** have at most L layers before them. In fp32 they are held to 2e-5, the independent sum
with some air: tighter than outputs, because the comparison is there to find the place of a fault
that outputs may not show. Other precisions have the bounds of outputs.

NaN and infinity are never within tolerance.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.channels import ChannelNoise
from cbam_deploy.numerics.metrics import TensorError


@dataclass(frozen=True)
class Tolerance:
    """Bounds on a `TensorError`; None leaves that figure free.

    Attributes:
        max_abs: of the maximum absolute error, in the tensor's own unit.
        max_relative: of the maximum absolute error over the largest |reference|.
        min_cosine: of the cosine.
        min_snr_db: of the signal-to-noise ratio in dB.
        min_top1: of the top-1 agreement, between 0 and 1.
        min_channel_snr_db: of the signal-to-noise ratio in dB of each channel by itself, where its
            noise is more than `channels` expects.
        channels: noise to expect in any channel; None leaves channels out.
    """

    max_abs: float | None = None
    max_relative: float | None = None
    min_cosine: float | None = None
    min_snr_db: float | None = None
    min_top1: float | None = None
    min_channel_snr_db: float | None = None
    channels: ChannelNoise | None = None


@dataclass(frozen=True)
class _Bound:
    """What a bound is on, a figure of `TensorError`; what it may be; and what leaving it means."""

    figure: str
    range: tuple[float, float]
    violation: str


_POSITIVE, _ANY = (0.0, math.inf), (-math.inf, math.inf)
_BOUNDS = {
    "max_abs": _Bound("max_abs", _POSITIVE, "maximum error {figure:.2e} exceeds {bound:.2e}"),
    "max_relative": _Bound(
        "max_relative",
        _POSITIVE,
        "maximum error {figure:.2e} of the largest reference value exceeds {bound:.2e}",
    ),
    "min_cosine": _Bound("cosine", (-1.0, 1.0), "cosine {figure:.7f} is below {bound:.7f}"),
    "min_snr_db": _Bound("snr_db", _ANY, "signal-to-noise {figure:.1f} dB is below {bound:.1f}"),
    "min_top1": _Bound(
        "top1_agreement", (0.0, 1.0), "top-1 agreement {figure:.2%} is below {bound:.2%}"
    ),
    "min_channel_snr_db": _Bound(
        "channel_snr_db",
        _ANY,
        "{channel} by itself has a signal-to-noise of {figure:.1f} dB, below {bound:.1f}",
    ),
}

OUTPUTS = {
    "fp32": Tolerance(
        max_relative=1e-4,
        min_channel_snr_db=30.0,
        channels=ChannelNoise(2.4e-5, smallest=2.0**-120),
    ),
    "fp16": Tolerance(
        max_relative=2e-2,
        min_cosine=0.9999,
        min_channel_snr_db=10.0,
        channels=ChannelNoise(5.2e-3, smallest=2.0**-20),
    ),
    "bf16": Tolerance(
        max_relative=0.16,
        min_cosine=0.9936,
        min_channel_snr_db=10.0,
        channels=ChannelNoise(4.2e-2, smallest=2.0**-120),
    ),
    "int8": Tolerance(
        min_snr_db=20.0,
        min_channel_snr_db=3.0,
        channels=ChannelNoise(0.2, smallest=2.0**-12),
    ),
    "fp8": Tolerance(
        min_snr_db=18.0,
        min_channel_snr_db=3.0,
        channels=ChannelNoise(0.25, smallest=2.0**-12),
    ),
}

LAYERS = {**OUTPUTS, "fp32": replace(OUTPUTS["fp32"], max_relative=2e-5)}


def tolerance_for(precision: str, table: dict[str, Tolerance], own: Tolerance) -> Tolerance:
    """The tolerance of `precision` in `table`, with the bounds that `own` sets in their place.

    Raises:
        BadInput: the table has no such precision, or no tensor could meet or miss a bound.
    """
    if precision not in table:
        raise BadInput(f"precision {precision!r} has no tolerance", f"known are {', '.join(table)}")
    given = {name: value for name, value in asdict(own).items() if value is not None}
    for name, value in given.items():
        low, high = _BOUNDS[name].range
        if not low <= value <= high:
            raise BadInput(
                f"{name.replace('_', ' ')} {value:g} is not a tolerance",
                f"give a number from {low:g} to {high:g}",
            )
    return replace(table[precision], **given)


_ROUNDING_FACTOR, _LARGEST_FP32_BOUND = 5, 1e-2


def fp32_bound(rounding: float | None, dtype: np.dtype[Any]) -> float:
    """The bound on an FP32 network's largest relative error, as the module's docstring derives it.

    Args:
        rounding: PyTorch's own error, FP32 against FP64; None where it is not known.
        dtype: of the output.
    """
    bound = OUTPUTS["fp32"].max_relative
    assert bound is not None
    step = float(np.finfo(dtype).eps) if dtype == np.float16 else 0.0
    return max(bound, step, min(_ROUNDING_FACTOR * (rounding or 0.0), _LARGEST_FP32_BOUND))


_HALF_DB = 6.0
FEW_SAMPLES = 8  # Of fewer, whether one value falls to the other side decides.


def check_rounded_alike(
    error: TensorError, own: TensorError, spread: TensorError, *, beyond: bool = False
) -> tuple[str, ...]:
    """A sentence where a file is further from PyTorch rounded like it than rounding explains.

    Args:
        error: of the file against PyTorch rounded the same way.
        own: of PyTorch rounded that way against FP32.
        spread: of PyTorch rounded that way with sums in FP64 against FP32.
        beyond: whether the file rounds values that PyTorch has not, or the samples are so few
            (`FEW_SAMPLES`) that PyTorch's own spread says little.
    """
    largest = OUTPUTS["fp32"].max_relative
    assert largest is not None
    bound = min(
        own.snr_db + (-_HALF_DB if beyond else _HALF_DB),
        spread.snr_db - 20 * math.log10(_ROUNDING_FACTOR),
        -20 * math.log10(largest),
    )
    if own.nonfinite or spread.nonfinite or error.snr_db >= bound:
        return ()
    return (
        f"signal-to-noise {error.snr_db:.1f} dB against PyTorch rounded the same way is below"
        f" {bound:.1f}",
    )


def relaxed_to(bound: float, usual: Tolerance) -> Tolerance:
    """`usual` with `bound` as the largest relative error, and channels that may have as much."""
    if usual.max_relative is None or bound <= usual.max_relative:
        return replace(usual, max_relative=bound)
    snr, channels = usual.min_channel_snr_db, usual.channels
    return replace(
        usual,
        max_relative=bound,
        min_channel_snr_db=None if snr is None else min(snr, -20 * math.log10(bound)),
        channels=None if channels is None else replace(channels, noise=max(bound, channels.noise)),
    )


def check(error: TensorError, tolerance: Tolerance) -> tuple[str, ...]:
    """One sentence for each figure of `error` that leaves `tolerance`; empty when all hold."""
    found = []
    if error.reference_nonfinite:
        found.append(f"the reference has {error.reference_nonfinite} NaN or infinite elements")
    if error.nonfinite:
        found.append(f"{error.nonfinite} elements are NaN or infinite")
    for name, row in _BOUNDS.items():
        bound, figure = getattr(tolerance, name), getattr(error, row.figure)
        if bound is None or figure is None:
            continue
        within = figure <= bound if name.startswith("max") else figure >= bound
        if not within:  # Nor is NaN.
            found.append(row.violation.format(figure=figure, bound=bound, channel=error.channel))
    return tuple(found)
