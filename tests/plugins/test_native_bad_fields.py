"""Whatever a node's fields hold, and whatever it is asked: no crash, and a sentence that says why.

Under AddressSanitizer and UndefinedBehaviorSanitizer, on a driver that checks launches and carries
none out: that the numbers of a launch are those of its kernel, nobody but who wrote them can know.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from native_build import Programs, build_driver, sanitized
from native_cases import CAPABILITY, CASES, STAGED

from benchmarks.gpu_check.plugin_host import CHAR, INT8
from cbam_deploy.plugins.launch_program import text

CASE = CASES[1]
KINDS = range(-1, 12)  # PluginFieldType
NUMBERS = (0, -1, 1, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, 10**30)
MUTATIONS = 260


@dataclass(frozen=True)
class Field:
    """One field; `length` is what it says of its size, `data` None where it has none."""

    name: str
    kind: int
    data: bytes | None
    length: int


@pytest.fixture(scope="session")
def programs(built) -> Programs:
    driver = build_driver(built, set().union(*(case.kernels for case in CASES)))
    return sanitized(built, "memory", driver).on(CAPABILITY)


@dataclass(frozen=True)
class Whole:
    """What the fields hold before they are damaged."""

    program: bytes
    images: bytes


def fields(program: bytes, images: bytes) -> list[Field]:
    """Both, well labelled."""
    return [
        Field("program", CHAR, program, len(program)),
        Field("images", INT8, images, len(images)),
    ]


def mutations(whole: Whole, seed: int) -> Iterator[list[Field]]:
    """Sets of fields that are each somehow wrong, drawn anew without end."""
    rng = random.Random(seed)
    program, images = whole.program, whole.images
    lines = program.decode().splitlines()

    def given() -> list[Field]:
        return fields(program, images)

    def with_program(changed: bytes) -> list[Field]:
        return fields(changed, images)

    def words() -> tuple[int, list[str]]:
        number = rng.randrange(len(lines))
        return number, lines[number].split(" ")

    def joined(number: int, *instead: str) -> bytes:
        return "".join(
            f"{line}\n" for line in [*lines[:number], *instead, *lines[number + 1 :]]
        ).encode()

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 30))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    def number_changed() -> list[Field]:
        number, parts = words()
        place = rng.randrange(len(parts))
        parts[place] = str(rng.choice(NUMBERS))
        return with_program(joined(number, " ".join(parts)))

    def words_swapped() -> list[Field]:
        number, parts = words()
        first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
        parts[first], parts[second] = parts[second], parts[first]
        return with_program(joined(number, " ".join(parts)))

    def word_gone() -> list[Field]:
        number, parts = words()
        del parts[rng.randrange(len(parts))]
        return with_program(joined(number, " ".join(parts)))

    def word_repeated() -> list[Field]:
        number, parts = words()
        parts.insert(0, parts[-1]) if rng.random() < 0.2 else parts.extend([parts[-1]] * 100)
        return with_program(joined(number, " ".join(parts)))

    def line_gone() -> list[Field]:
        return with_program(joined(rng.randrange(len(lines))))

    def lines_swapped() -> list[Field]:
        first, second = sorted(rng.sample(range(len(lines)), 2))
        changed = lines.copy()
        changed[first], changed[second] = changed[second], changed[first]
        return with_program("".join(f"{line}\n" for line in changed).encode())

    def line_repeated() -> list[Field]:
        number = rng.randrange(len(lines))
        return with_program(joined(number, *[lines[number]] * rng.choice((2, 1000))))

    def program_cut() -> list[Field]:
        return with_program(program[: rng.randrange(len(program))])

    def images_cut() -> list[Field]:
        return fields(program, images[: rng.randrange(len(images))])

    def one_of_both() -> list[Field]:
        return [rng.choice(given())]

    def relabelled() -> list[Field]:
        names = ("program", "images", "Program", "", "-", "p" * 2000)
        return [
            Field(rng.choice((one.name, *names)), rng.choice(KINDS), one.data, one.length)
            for one in given()
        ]

    def empty() -> list[Field]:
        damaged, gone = given(), rng.randrange(2)
        one = damaged[gone]
        length = rng.choice((0, -1, -(2**31), one.length))
        damaged[gone] = Field(one.name, one.kind, None, length)
        return damaged

    def short() -> list[Field]:
        one, other = given()
        length = rng.choice((0, -1, -(2**31), 1, 13))
        return [Field(one.name, one.kind, one.data, length), other]

    makers = (
        *(number_changed, words_swapped, word_gone, word_repeated, line_gone, lines_swapped),
        *(line_repeated, program_cut, images_cut, one_of_both, relabelled, empty, short),
        lambda: with_program(flipped(program)),
        lambda: fields(program, flipped(images)),
        lambda: [one for one in given() for _ in range(3)],
        lambda: with_program(rng.randbytes(rng.randrange(200))),
        list,
    )
    while True:
        for make in makers:
            yield make()


def lines_of(sets: list[list[Field]], folder: Path) -> Iterator[str]:
    """Commands that try each set; all data lies in one file."""
    blob = folder / "blob"
    with blob.open("wb") as file:
        for number, one in enumerate(sets):
            yield "fields"
            for field in one:
                name = field.name if field.name and " " not in field.name else "-"
                data = field.data or b""
                where = "-" if field.data is None else str(blob)
                yield f"field {name} {field.kind} {field.length} {where} {file.tell()} {len(data)}"
                file.write(data)
            yield f"say {number}"
            yield "rehearse"


def outcomes(said: list[str]) -> list[list[str]]:
    """What was said of each set."""
    found: list[list[str]] = []
    for line in said:
        if line.startswith("say "):
            found.append([])
        elif found:
            found[-1].append(line)
    return found


@pytest.fixture(scope="module")
def serialized(programs, tmp_path_factory) -> Whole:
    """The fields of an engine."""
    folder = tmp_path_factory.mktemp("engine")
    lines = [*CASE.input_lines(folder, "CHW32"), *CASE.node.field_lines(folder)]
    programs.run([*lines, "build int8 CHW32 1 2 4", f"save {STAGED} {folder}/engine"])
    return Whole(*((folder / f"engine.{one}").read_bytes() for one in ("program", "images")))


@pytest.mark.parametrize("phase", ["build", "runtime"])
def test_damaged_fields_are_refused_in_a_sentence_or_work(phase, programs, serialized, tmp_path):
    node = CASE.node
    lowered = Whole(text(node.program).encode(), node.images)
    whole = lowered if phase == "build" else serialized
    source = mutations(whole, seed=len(phase))
    sets = [fields(whole.program, whole.images), *(next(source) for _ in range(MUTATIONS))]
    commands = list(lines_of(sets, tmp_path))
    commands = [f"rehearse {phase}" if line == "rehearse" else line for line in commands]
    said = programs.run([*CASE.input_lines(tmp_path, "CHW32"), *commands], STAND_IN_DRY="1")
    found = outcomes(said)
    assert len(found) == len(sets)
    assert found[0] == ["works"]
    refused = 0
    for given, lines in zip(sets, found, strict=True):
        assert lines[-1] == "works" or lines[-1].startswith("refused "), (given, lines)
        if lines[-1].startswith("refused "):
            refused += 1
            reasons = [line for line in lines[:-1] if line.startswith("cbam_deploy: ")]
            assert reasons, (given, lines)
    assert refused > MUTATIONS // 2


def test_a_program_may_count_the_zero_byte_that_ends_a_string(programs, tmp_path):
    node = CASE.node
    given = fields(text(node.program).encode() + b"\0", node.images)
    commands = list(lines_of([given], tmp_path))
    commands = ["rehearse build" if line == "rehearse" else line for line in commands]
    said = programs.run([*CASE.input_lines(tmp_path, "CHW32"), *commands], STAND_IN_DRY="1")
    assert outcomes(said) == [["works"]]


MISUSES = {
    "another-height": "lowered for maps of 40x4x4, given 1x40x5x4",
    "another-channel-count": "given 1x39x4x4",
    "three-dimensions": "lowered for maps of 40x4x4",
    "no-dimensions": "lowered for maps of 40x4x4",
    "unknown-dimensions": "lowered for maps of 40x4x4",
    "a-hundred-dimensions": "lowered for maps of 40x4x4",
    "free-batch": "a batch of -1 images cannot be launched",
    "huge-batch": "a batch of 1099511627776 images",
    "boundless-batch": "a batch of 9223372036854775807 images",
    "fewer-inputs": "other inputs",
    "no-inputs": "other inputs",
    "negative-inputs": "other inputs",
    "two-outputs": "other inputs",
    "another-type": "no kernels for maps of this type and layout",
    "another-layout": "no kernels for maps of this type and layout",
    "unknown-type": "no kernels for maps of this type and layout",
    "no-shapes": "no kernels for maps of this type and layout",
    "changed-without-context": "no CUDA context is current",
    "enqueued-without-context": "no CUDA context is current",
}
ANSWERED = {
    "unknown-capability": 1,  # with null
    "position-beyond": 1,  # with false
    "too-few-tactics": 1,
    "empty-batch": 0,
    # The one tactic that an engine holds is taken, whatever is set.
    "unknown-tactic": 0,
    "negative-tactic": 0,
}


@pytest.fixture(scope="module")
def misused(programs, tmp_path_factory) -> dict[str, list[str]]:
    """What is said after each call."""
    folder = tmp_path_factory.mktemp("misuse")
    lines = [*CASE.input_lines(folder, "CHW32"), *CASE.node.field_lines(folder)]
    lines.append("build int8 CHW32 1 2 4")
    for name in (*MISUSES, *ANSWERED):
        lines += [f"say {name}", f"misuse {name}"]
    said = programs.run([*lines, "say list", "misuse list"], STAND_IN_DRY="1")
    *found, listed = outcomes(said)
    assert sorted(listed) == sorted([*MISUSES, *ANSWERED]), "all that the host can do"
    return dict(zip((*MISUSES, *ANSWERED), found, strict=True))


@pytest.mark.parametrize("name", MISUSES)
def test_a_wrong_call_fails_and_says_why(name, misused):
    *sentences, answer = misused[name]
    assert answer == f"{name} answers 1"
    assert any(MISUSES[name] in line for line in sentences), sentences


@pytest.mark.parametrize("name", ANSWERED)
def test_a_call_that_asks_too_much_gets_an_answer(name, misused):
    assert misused[name][-1] == f"{name} answers {ANSWERED[name]}"
