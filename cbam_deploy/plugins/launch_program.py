"""The launch program of a lowered gate: what the plugin library launches, where and for what.

A node carries it as text, which `text` writes and `read_program` reads; the library reads it too
(``native/program.cpp``). Lines end with a line feed, words are separated by one space::

    cbam_deploy 2
    gate CbamGateAddRelu on 256x56x56 at layer1.0           for people
    inputs x r w0 b0 w1 b1 ws bs                            of the node, in order; its output is y
    maps x r                                                those of them that are feature maps
    sizes 256 56 56                                         C, H, W of x; the batch is free
    image ENTRY sm_90 KEY OFFSET BYTES                      machine code of entry point ENTRY
    image ENTRY compute_90 KEY - BYTES                      PTX, with a zero byte at its end
    target 90                                               planned for compute capability 9.0
    format int8 CHW32                                       of the maps; the first is preferred
    tactic 1                                                a number, unique within the format
    buffer partials 4096                                    workspace, bytes per image
    launch ENTRY 16 1 256 2048 : x 256 56 56 partials       see `ProgramLaunch`
    launch ENTRY 8 8 512 4096 persistent : x 256 batch y    of blocks that take several images
    launch ENTRY 4 1 256 2048 programmatic : partials 256 y that may start before the last one ends

An image's KEY starts the sha256 of its bytes. OFFSET is its place among the images that the node
carries, ``-`` where another node of the network does. A format belongs to the target above it, a
tactic to the format, buffers and launches to the tactic. In programs that begin ``cbam_deploy 1``
no launch is either; they are read like these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast, get_args

from cbam_deploy.plugins.launches import Launch, LaunchPlan
from cbam_deploy.plugins.layouts import Dtype

_FIRST_LINE = "cbam_deploy 2"
_FIRST_LINES = ("cbam_deploy 1", _FIRST_LINE)  # of all that are read
_FLAGS = ("persistent", "programmatic")  # of a launch, in this order; fields of `ProgramLaunch`


@dataclass(frozen=True)
class Image:
    """Machine code or PTX of one entry point.

    Attributes:
        entry: name of the entry point.
        architecture: ``sm_87`` for machine code, ``compute_87`` for PTX.
        key: first 16 hexadecimal digits of the sha256 of its bytes.
        offset: bytes before it in the node's images; None where another node carries it.
        bytes: its size.
    """

    entry: str
    architecture: str
    key: str
    offset: int | None
    bytes: int


@dataclass(frozen=True)
class ProgramLaunch:
    """One kernel launch.

    Attributes:
        entry: name of the entry point.
        blocks_per_image: the grid is this times the batch, but for what `persistent` says.
        cluster: blocks of a cluster.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        arguments: the kernel's parameters, in order: names of tensors and buffers, 32-bit integers,
            and ``batch`` for the number of images.
        persistent: whether there are at most as many blocks as the GPU runs at the same time.
        programmatic: whether it may start before the launch in front of it has ended, which is one
            of the same tactic; for compute capability 9.0 and later.
    """

    entry: str
    blocks_per_image: int
    cluster: int
    threads: int
    shared_bytes: int
    arguments: tuple[str | int, ...]
    persistent: bool = False
    programmatic: bool = False

    @classmethod
    def of(cls, launch: Launch) -> ProgramLaunch:
        """As a program has it."""
        return cls(
            entry=launch.kernel.name,
            blocks_per_image=launch.blocks_per_image,
            cluster=launch.cluster,
            threads=launch.threads,
            shared_bytes=launch.shared_bytes,
            arguments=launch.arguments,
            persistent=launch.persistent,
            programmatic=launch.programmatic,
        )


@dataclass(frozen=True)
class Tactic:
    """One way to compute the gate.

    Attributes:
        number: positive.
        buffers: name and bytes per image of each piece of workspace.
        launches: one after the other.
    """

    number: int
    buffers: tuple[tuple[str, int], ...]
    launches: tuple[ProgramLaunch, ...]

    @classmethod
    def of(cls, number: int, plan: LaunchPlan) -> Tactic:
        """As a program has it; a plan counts float32 elements."""
        buffers = tuple((name, 4 * elements) for name, elements in plan.workspace)
        return cls(number, buffers, tuple(map(ProgramLaunch.of, plan.launches)))


@dataclass(frozen=True)
class MapFormat:
    """Type of the maps, their layout by TensorRT's name, and the tactics for these."""

    dtype: Dtype
    layout: str
    tactics: tuple[Tactic, ...]


@dataclass(frozen=True)
class Target:
    """A compute capability, 87 for 8.7, and the formats planned within its limits."""

    capability: int
    formats: tuple[MapFormat, ...]


@dataclass(frozen=True)
class LaunchProgram:
    """Everything that the plugin knows of one gate.

    Attributes:
        gate: operator, sizes and place in the network, for people.
        inputs: names of the node's inputs, in order.
        maps: those of them that are feature maps.
        sizes: channels, height and width of x.
        images: of every entry point, for every target.
        targets: what is launched.
    """

    gate: str
    inputs: tuple[str, ...]
    maps: tuple[str, ...]
    sizes: tuple[int, int, int]
    images: tuple[Image, ...] = ()
    targets: tuple[Target, ...] = field(default=())

    @property
    def operator(self) -> str:
        """Name of the gate's operator."""
        return self.gate.partition(" ")[0]

    @property
    def tactic_count(self) -> int:
        """Tactics of all targets and formats."""
        return sum(len(form.tactics) for target in self.targets for form in target.formats)


def text(program: LaunchProgram) -> str:
    """What a node carries; `read_program` reads it back."""
    return "".join(f"{line}\n" for line in _lines(program))


def _lines(program: LaunchProgram) -> Iterator[str]:
    yield _FIRST_LINE
    yield f"gate {program.gate}"
    yield _line("inputs", *program.inputs)
    yield _line("maps", *program.maps)
    yield _line("sizes", *program.sizes)
    for image in program.images:
        offset = "-" if image.offset is None else image.offset
        yield _line("image", image.entry, image.architecture, image.key, offset, image.bytes)
    for target in program.targets:
        yield _line("target", target.capability)
        for form in target.formats:
            yield _line("format", form.dtype, form.layout)
            for tactic in form.tactics:
                yield _line("tactic", tactic.number)
                for name, size in tactic.buffers:
                    yield _line("buffer", name, size)
                for one in tactic.launches:
                    shape = (one.blocks_per_image, one.cluster, one.threads, one.shared_bytes)
                    flags = [flag for flag in _FLAGS if getattr(one, flag)]
                    yield _line("launch", one.entry, *shape, *flags, ":", *one.arguments)


def _line(*words: str | int) -> str:
    return " ".join(map(str, words))


def read_program(written: str) -> LaunchProgram:
    """The program that `text` wrote.

    Raises:
        ValueError: it wrote no such text.
    """
    lines = written.split("\n")
    if lines[0] not in _FIRST_LINES or lines.pop() != "":
        raise ValueError("it is no launch program of this version")
    reader = _Reader()
    for number, line in enumerate(lines[1:], 2):
        key, _, rest = line.partition(" ")
        try:
            getattr(reader, f"read_{key}")(rest)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise ValueError(f"line {number} of its launch program cannot be read") from None
    return reader.program()


class _Reader:
    """One method for each kind of line."""

    def __init__(self) -> None:
        self._gate = ""
        self._inputs: tuple[str, ...] = ()
        self._maps: tuple[str, ...] = ()
        self._sizes: tuple[int, ...] = ()
        self._images: list[Image] = []
        self._targets: list[tuple[int, list[tuple[Dtype, str, list[Tactic]]]]] = []

    def read_gate(self, rest: str) -> None:
        self._gate = rest

    def read_inputs(self, rest: str) -> None:
        self._inputs = tuple(rest.split(" "))

    def read_maps(self, rest: str) -> None:
        self._maps = tuple(rest.split(" "))

    def read_sizes(self, rest: str) -> None:
        channels, height, width = map(int, rest.split(" "))
        self._sizes = (channels, height, width)

    def read_image(self, rest: str) -> None:
        entry, architecture, key, offset, size = rest.split(" ")
        place = None if offset == "-" else int(offset)
        self._images.append(Image(entry, architecture, key, place, int(size)))

    def read_target(self, rest: str) -> None:
        self._targets.append((int(rest), []))

    def read_format(self, rest: str) -> None:
        dtype, layout = rest.split(" ")
        if dtype not in get_args(Dtype):
            raise ValueError(dtype)
        self._targets[-1][1].append((cast(Dtype, dtype), layout, []))

    def read_tactic(self, rest: str) -> None:
        self._targets[-1][1][-1][2].append(Tactic(int(rest), (), ()))

    def read_buffer(self, rest: str) -> None:
        name, size = rest.split(" ")
        self._extend(buffers=((name, int(size)),))

    def read_launch(self, rest: str) -> None:
        shape, arguments = rest.split(" : ")
        entry, *numbers = shape.split(" ")
        blocks, cluster, threads, shared = map(int, numbers[:4])
        flags = {flag: flag in numbers[4:] for flag in _FLAGS}
        capability, formats = self._targets[-1]
        waits = capability >= 90 and formats[-1][2][-1].launches  # for another launch of the gate
        if numbers[4:] != [flag for flag in _FLAGS if flags[flag]]:
            raise ValueError(shape)
        if flags["programmatic"] and not waits:
            raise ValueError(shape)
        words = tuple(map(_argument, arguments.split(" ")))
        launch = ProgramLaunch(entry, blocks, cluster, threads, shared, words, **flags)
        self._extend(launches=(launch,))

    def _extend(
        self,
        buffers: tuple[tuple[str, int], ...] = (),
        launches: tuple[ProgramLaunch, ...] = (),
    ) -> None:
        tactics = self._targets[-1][1][-1][2]
        last = tactics[-1]
        tactics[-1] = Tactic(last.number, last.buffers + buffers, last.launches + launches)

    def program(self) -> LaunchProgram:
        if not (self._inputs and self._maps and self._sizes and self._targets):
            raise ValueError("its launch program is incomplete")
        return LaunchProgram(
            gate=self._gate,
            inputs=self._inputs,
            maps=self._maps,
            sizes=cast(tuple[int, int, int], self._sizes),
            images=tuple(self._images),
            targets=tuple(
                Target(capability, tuple(MapFormat(*one[:2], tuple(one[2])) for one in formats))
                for capability, formats in self._targets
            ),
        )


def _argument(word: str) -> str | int:
    return int(word) if word.lstrip("-").isdecimal() else word
