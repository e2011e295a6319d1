"""The plugin library between a host that plays TensorRT and a stand-in for the CUDA driver.

``benchmarks/gpu_check/tensorrt_host`` makes TensorRT's calls in the builder's and in the executor's
order, checks what the protocol asks of a plugin, and hands out memory of exactly the
sizes that it was told. The kernels really run, on threads. All is under AddressSanitizer and
UndefinedBehaviorSanitizer, and what runs side by side under ThreadSanitizer. What this does not
show: TensorRT's own builder, and a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from host_device import LIMITS
from native_build import Programs, build_driver, sanitized
from native_cases import CAPABILITY, CASES, FUSED, STAGED, Case, stand_in_image
from onnx import helper, numpy_helper

from benchmarks.gpu_check.plugin_host import Node
from cbam_deploy.gates.operators import DOMAIN, in_lower_case, is_lowered
from cbam_deploy.gates.reference import Bounded, disagreement
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.plugins.compile import CompiledKernels
from cbam_deploy.plugins.gate import round_up
from cbam_deploy.plugins.launch_program import (
    Image,
    LaunchProgram,
    ProgramLaunch,
    Target,
    read_program,
)
from cbam_deploy.plugins.lowering import lower_gates

CBAM = CASES[0]
CONTEXTS = ["2@0,1@2,3@1", "1@3,1@0", "4@0"]
"""What each context runs: so many images, from which on."""


@pytest.fixture(scope="session")
def driver(built) -> Path:
    return build_driver(built, set().union(*(case.kernels for case in CASES)))


@pytest.fixture(scope="session")
def programs(built, driver) -> Programs:
    return sanitized(built, "memory", driver).on(CAPABILITY)


@dataclass(frozen=True)
class Session:
    """What host and library said, and the folder that engines and results are in."""

    case: Case
    said: list[str]
    folder: Path

    def of(self, word: str) -> list[str]:
        """What follows a word that lines begin with."""
        return [line.removeprefix(word).strip() for line in self.said if line.startswith(word)]


def in_contexts(
    case: Case,
    node: Node,
    tactics: dict[str, list[int]],
    folder: Path,
    contexts: Sequence[str] = CONTEXTS,
) -> list[str]:
    """Build an engine for each of the tactics of each format, and run it in `contexts`."""
    lines = node.field_lines(folder)
    for format_, numbers in tactics.items():
        lines += [*case.input_lines(folder, format_), f"build {case.dtype} {format_} 1 2 4"]
        for tactic in numbers:
            place = folder / f"{format_}.{tactic}"
            lines += [f"run {tactic} {place} {' '.join(contexts)}", f"save {tactic} {place}"]
    return [*lines, "offers"]


def both_tactics(*formats: str) -> dict[str, list[int]]:
    """Of the cases' own programs."""
    return {format_: [FUSED, STAGED] for format_ in formats}


@pytest.fixture(scope="module", params=CASES, ids=str)
def session(request, programs, tmp_path_factory) -> Session:
    case, folder = request.param, tmp_path_factory.mktemp("session")
    lines = in_contexts(case, case.node, both_tactics(*case.formats), folder)
    # Room for two clusters: in batches of three and four, one of them has several images.
    return Session(case, programs.run(lines, STAND_IN_MULTIPROCESSORS="4"), folder)


def check_results(
    case: Case,
    tactics: dict[str, list[int]],
    folder: Path,
    contexts: Sequence[str] = CONTEXTS,
) -> None:
    for format_, tactic in [(one, number) for one, all_ in tactics.items() for number in all_]:
        for context, batches in enumerate(contexts):
            for number, batch in enumerate(batches.split(",")):
                size, first = map(int, batch.split("@"))
                part = slice(first, first + size)
                expected = Bounded(case.expected.value[part], case.expected.error[part])
                y = case.result(format_, folder / f"{format_}.{tactic}.{context}.{number}")
                assert disagreement(case.gate(format_), y, expected) is None


def test_engines_compute_the_gate_in_every_format_and_tactic(session):
    check_results(session.case, both_tactics(*session.case.formats), session.folder)


def test_contexts_of_one_engine_run_side_by_side_without_races(built, driver, tmp_path):
    programs = sanitized(built, "threads", driver).on(CAPABILITY)
    tactics = both_tactics("HWC8")
    programs.run(in_contexts(CBAM, CBAM.node, tactics, tmp_path))
    check_results(CBAM, tactics, tmp_path)


def test_maps_are_offered_in_the_programs_formats_and_all_else_in_float(session):
    program = session.case.node.program
    expected = set()
    for format_ in session.case.formats:
        of_map = f"{session.case.dtype}:{format_}"
        inputs = [of_map if name in program.maps else "float32:LINEAR" for name in program.inputs]
        expected.add(" ".join([*inputs, of_map]))
    offered = session.of("offer")
    assert set(offered) == expected
    assert len(offered) == len(expected)


def test_creator_is_found_by_name_and_names_its_fields(session):
    assert session.of("creator") == ["cbam_deploy FusedGate 1"]
    assert session.of("field") == ["program 6", "images 3"]  # kCHAR, kINT8


def test_workspace_is_what_the_largest_batch_needs_in_any_tactic(session):
    expected = []
    for plans in session.case.plans.values():
        sizes = [
            [4 * count * session.case.images for _, count in one.workspace]
            for one in plans.values()
        ]
        expected.append(max(sum(round_up(size, 256) for size in one) for one in sizes))
    assert list(map(int, session.of("workspace"))) == expected


def test_workspace_is_for_the_largest_batch_that_can_be_launched(programs, tmp_path):
    """A profile may end beyond it: smaller batches still have to find their workspace."""
    (target,) = CBAM.node.program.targets
    form = target.formats[0]
    staged = next(one for one in form.tactics if one.number == STAGED)
    *others, last = staged.launches
    staged = replace(staged, launches=(*others, replace(last, blocks_per_image=2**30)))
    targets = (replace(target, formats=(replace(form, tactics=(staged,)),)),)
    node = Node(replace(CBAM.node.program, targets=targets), CBAM.node.images)
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *node.field_lines(tmp_path)]
    said = programs.run([*lines, "build float16 HWC8 1 1 4"], STAND_IN_DRY="1")
    assert f"workspace {sum(round_up(size, 256) for _, size in staged.buffers)}" in said


def test_an_engine_holds_one_format_one_tactic_and_every_image_of_it(session):
    case = session.case
    for format_, plans in case.plans.items():
        for tactic, chosen in plans.items():
            place = f"{session.folder}/{format_}.{tactic}"
            program = read_program(Path(f"{place}.program").read_text())
            (target,) = program.targets
            (kept,) = target.formats
            assert (target.capability, kept.dtype, kept.layout) == (CAPABILITY, case.dtype, format_)
            assert [one.number for one in kept.tactics] == [tactic]
            entries = {launch.kernel.name for launch in chosen.launches}
            content = Path(f"{place}.images").read_bytes()
            assert {image.entry for image in program.images} == entries
            for image in program.images:
                assert image.offset is not None
                carried = content[image.offset : image.offset + image.bytes]
                assert carried == stand_in_image(image.entry, image.architecture)


def test_timing_cache_tells_programs_apart_but_not_what_people_call_them(programs, tmp_path):
    program = CBAM.node.program
    (target,) = program.targets
    renamed = replace(program, gate="the same elsewhere")
    fewer = replace(program, targets=(Target(CAPABILITY, target.formats[:1]),))
    lines = CBAM.input_lines(tmp_path, "HWC8")
    for one in (program, renamed, fewer):
        lines += Node(one, CBAM.node.images).field_lines(tmp_path)
        lines.append("build float16 HWC8 1 2 4")
    said = Session(CBAM, programs.run(lines), tmp_path)
    same, as_well, other = said.of("timing cache id")
    assert same == as_well != other
    assert said.of("metadata") == [program.gate, renamed.gate, fewer.gate]


def test_a_program_of_the_version_before_is_still_read(programs, tmp_path):
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *CBAM.node.field_lines(tmp_path)]
    field = next(line for line in lines if line.startswith("field program"))
    file = Path(field.split(" ")[4])
    file.write_bytes(file.read_bytes().replace(b"cbam_deploy 2\n", b"cbam_deploy 1\n"))
    said = programs.run([*lines, "build float16 HWC8 1 2 4", f"run {STAGED} {tmp_path}/y 1@0"])
    assert file.read_bytes().startswith(b"cbam_deploy 1\n")
    assert f"ran {STAGED}" in said


def with_shared_memory(node: Node, shared_bytes: int) -> Node:
    """The fused tactic in HWC8 alone, with more shared memory than it needs."""

    def more(launch: ProgramLaunch) -> ProgramLaunch:
        return replace(launch, shared_bytes=shared_bytes)

    (target,) = node.program.targets
    form = target.formats[0]
    fused = next(one for one in form.tactics if one.number == FUSED)
    fused = replace(fused, launches=tuple(map(more, fused.launches)))
    targets = (replace(target, formats=(replace(form, tactics=(fused,)),)),)
    return Node(replace(node.program, targets=targets), node.images)


def test_gates_that_share_a_kernel_may_need_different_shared_memory(programs, tmp_path):
    lines = CBAM.input_lines(tmp_path, "HWC8")
    for shared_bytes in (100_000, 60_000):
        lines += with_shared_memory(CBAM.node, shared_bytes).field_lines(tmp_path)
        lines += ["build float16 HWC8 1 1 1", f"hold {FUSED}"]
    assert programs.run([*lines, "again", "release"])[-1] == "ran again"


def test_an_image_may_lie_in_another_gate_of_the_network(programs, tmp_path):
    images = tuple(replace(image, offset=None) for image in CBAM.node.program.images)
    other = Node(replace(CBAM.node.program, images=images), b"\0")
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *CBAM.node.field_lines(tmp_path), "parse"]
    lines += [
        *other.field_lines(tmp_path),
        "build float16 HWC8 1 2 4",
        f"run {FUSED} {tmp_path}/y 1@0",
    ]
    lines += ["release", f"run {FUSED} {tmp_path}/y 1@0"]
    lines.append("build float16 HWC8 1 2 4")
    said = programs.run(lines)
    assert said.count(f"ran {FUSED}") == 2, "an engine has its images"
    assert said[-1] == "refused supportsFormatCombination 0"
    assert "lies in another gate" in said[-2]


def test_one_plugin_runs_on_one_gpu_and_then_on_another(programs, tmp_path):
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *CBAM.node.field_lines(tmp_path)]
    lines += ["build float16 HWC8 1 1 1", f"hold {STAGED}", "gpu 1", "again", "gpu 0", "again"]
    said = programs.run([*lines, "release"], STAND_IN_GPUS="2")
    assert said.count("ran again") == 2


def test_a_driver_whose_graphs_hold_no_overlapping_launches_is_given_none(programs, tmp_path):
    lines = in_contexts(CBAM, CBAM.node, {"HWC8": [STAGED]}, tmp_path, ["1@0"])
    programs.run(lines, STAND_IN_VERSION="12020")
    check_results(CBAM, {"HWC8": [STAGED]}, tmp_path, ["1@0"])


def test_where_no_cluster_fits_the_next_tactic_is_taken(programs, tmp_path):
    """As on a partition of a GPU."""
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *CBAM.node.field_lines(tmp_path)]
    lines.append("build float16 HWC8 1 2 4")
    said = Session(CBAM, programs.run(lines, STAND_IN_CLUSTER="1"), tmp_path)
    assert [line.split()[0] for line in said.of("engine")] == [str(STAGED)]


def test_an_engine_says_what_the_gpu_lacks(programs, tmp_path):
    """Built where clusters fit; and nothing else was kept."""
    build = [*CBAM.input_lines(tmp_path, "HWC8"), *CBAM.node.field_lines(tmp_path)]
    programs.run([*build, "build float16 HWC8 1 2 4", f"save {FUSED} {tmp_path}/engine"])
    engine = Node(
        read_program((tmp_path / "engine.program").read_text()),
        (tmp_path / "engine.images").read_bytes(),
    )
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *engine.field_lines(tmp_path)]
    lines += [f"engine {FUSED} float16 HWC8 0", f"run {FUSED} {tmp_path}/y 1@0"]
    *_, reason, refused = programs.run(lines, STAND_IN_CLUSTER="1")
    assert refused == "refused onShapeChange"
    assert "no room for clusters of 2 blocks" in reason


TWO_TARGETS = tuple(replace(CBAM.node.program.targets[0], capability=one) for one in (90, 100))


def test_a_gpu_without_kernels_is_told_which_there_are(programs, tmp_path):
    program = replace(CBAM.node.program, targets=TWO_TARGETS)
    lines = [
        *CBAM.input_lines(tmp_path, "HWC8"),
        *Node(program, CBAM.node.images).field_lines(tmp_path),
    ]
    said = programs.run([*lines, "offers"], STAND_IN_CAPABILITY="75")
    sentence = "kernels for sm_90 and sm_100, this GPU is sm_75; lower again with --target sm_75"
    assert sum(sentence in line for line in said) == 1
    assert not any(line.startswith("offer") for line in said)


def test_no_launch_overlaps_where_kernels_do_not_wait(programs, tmp_path):
    older = replace(CBAM.node.program, targets=(replace(TWO_TARGETS[0], capability=89),))
    said = programs.run([*Node(older, CBAM.node.images).field_lines(tmp_path), "offers"])
    assert any("cannot be read: launch " in line for line in said)
    assert said[-1] == "refused createPlugin"


def test_no_launch_overlaps_one_that_is_not_the_gates(programs, tmp_path):
    """What another program launched need not have waited for what was launched before it."""
    (target,) = CBAM.node.program.targets
    form = target.formats[0]
    staged = next(one for one in form.tactics if one.number == STAGED)
    first, *others = staged.launches
    staged = replace(staged, launches=(replace(first, programmatic=True), *others))
    targets = (replace(target, formats=(replace(form, tactics=(staged,)),)),)
    node = Node(replace(CBAM.node.program, targets=targets), CBAM.node.images)
    said = programs.run([*node.field_lines(tmp_path), "offers"])
    assert any("cannot be read: launch " in line for line in said)
    assert said[-1] == "refused createPlugin"


def test_shared_memory_that_the_gpu_has_not_got_is_said(programs, tmp_path):
    node = with_shared_memory(CBAM.node, 100_000)
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *node.field_lines(tmp_path), "offers"]
    *_, reason = programs.run(lines, STAND_IN_SHARED_BYTES="65536")
    assert "needs 100000 bytes of shared memory, this GPU has 65536" in reason


# Which of a kernel's images a GPU takes; the driver refuses those that it cannot run.
CHOICES = {
    90: ({"sm_80": False, "sm_90": True, "compute_80": False}, True),
    89: ({"sm_80": False, "sm_86": True, "compute_80": False}, True),
    87: ({"sm_86": False, "compute_75": False, "compute_86": True}, True),  # no Tegra part's code
    120: ({"sm_90": False, "compute_90": True}, True),
    86: ({"sm_87": False, "compute_87": False}, False),
}


@pytest.mark.parametrize("capability", CHOICES)
def test_a_gpu_takes_its_own_machine_code_or_the_latest_ptx(capability, programs, tmp_path):
    """Of all images only the one that is to be taken is whole."""
    choices, runs = CHOICES[capability]
    images: list[Image] = []
    content = b""
    for launch in CBAM.plans["HWC8"][STAGED].launches:
        for architecture, chosen in choices.items():
            entry = launch.kernel.name
            data = stand_in_image(entry, architecture) if chosen else b"not to be loaded"
            key = f"{len(images):016x}"
            images.append(Image(entry, architecture, key, len(content), len(data)))
            content += data
    (target,) = CBAM.node.program.targets
    form = target.formats[0]
    (staged,) = (one for one in form.tactics if one.number == STAGED)
    launches = tuple(replace(one, programmatic=False) for one in staged.launches)
    staged = replace(staged, launches=launches)
    targets = (Target(75, (replace(form, tactics=(staged,)),)),)
    node = Node(replace(CBAM.node.program, images=tuple(images), targets=targets), content)
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *node.field_lines(tmp_path), "offers"]
    said = programs.run(lines, STAND_IN_CAPABILITY=str(capability))
    assert any(line.startswith("offer") for line in said) == runs, said
    if not runs:
        assert f"do not run on this GPU, sm_{capability}" in said[-1]


def test_without_a_driver_a_plugin_says_so(programs, tmp_path):
    alone = replace(programs, driver=None)
    lines = [*CBAM.input_lines(tmp_path, "HWC8"), *CBAM.node.field_lines(tmp_path), "parse"]
    said = alone.run([*lines, "offers-anyhow"])
    assert "libcuda.so.1" in said[-1]
    assert not any(line.startswith("offer") for line in said)


def network(case: Case) -> ir.Model:
    """An ONNX network of the gate of a case, between Q and DQ where its maps are integers."""
    operator, float_ = case.operator, "float16" if case.dtype == "float16" else "float32"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(float_))
    shape = ["N", case.channels, case.height, case.width]
    names = in_lower_case(operator.inputs)
    maps, nodes, constants = case.node.program.maps, [], dict(case.inputs)
    for name in maps:
        del constants[name]
    reads = {name: name for name in names}
    gate = case.gate(case.formats[0])
    if case.dtype == "int8":
        scales = {name: getattr(gate, f"{name}_scale") for name in (*maps, "y")}
        constants |= {
            f"{name}_scale": np.array(value, np.float32) for name, value in scales.items()
        }
        constants["zero"] = np.array(0, np.int8)
        for name in maps:
            reads[name] = f"{name}_real"
            nodes += [
                helper.make_node(op, [before, f"{name}_scale", "zero"], [after])
                for op, before, after in (
                    ("QuantizeLinear", name, f"{name}_integers"),
                    ("DequantizeLinear", f"{name}_integers", f"{name}_real"),
                )
            ]
    gated = "gated" if case.dtype == "int8" else "y"
    inputs = [reads[name] for name in names]
    nodes.append(helper.make_node(operator.name, inputs, [gated], name="gate", domain=DOMAIN))
    if case.dtype == "int8":
        nodes.append(helper.make_node("QuantizeLinear", [gated, "y_scale", "zero"], ["y_integers"]))
        nodes.append(helper.make_node("DequantizeLinear", ["y_integers", "y_scale", "zero"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "a_gate",
        [helper.make_tensor_value_info(name, kind, shape) for name in maps],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
    set_functions(model)
    return model


def known_tactics(case: Case, program: LaunchProgram) -> dict[str, list[int]]:
    """The tactics of a program that the stand-in driver has the kernels of, by format."""
    names = {kernel.name for kernel, _, _ in case.kernels}
    (target,) = program.targets
    return {
        form.layout: [
            tactic.number
            for tactic in form.tactics
            if {launch.entry for launch in tactic.launches} <= names
        ]
        for form in target.formats
        if form.layout in case.formats
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_lowered_network_runs(case, programs, tmp_path, monkeypatch):
    """From ONNX: what `lower` writes into a node, with the stand-in's images for NVRTC's."""

    def compiled(kernels, architecture):
        (kernel,) = kernels
        image = stand_in_image(kernel.name, architecture)
        return CompiledKernels(architecture, image, (kernel.name,), "", b".version 9.0\n\0")

    monkeypatch.setattr("cbam_deploy.plugins.images.compile_kernels", compiled)
    model = network(case)
    lower_gates(model, [LIMITS])
    (node,) = filter(is_lowered, model.graph)
    program = read_program(node.attributes.get_string("program"))
    images = node.attributes["images"].as_tensor().tobytes()
    tactics = known_tactics(case, program)
    assert all(tactics.values()), "in every format the staged kernels at the least"
    whole = ("4@0",)
    programs.run(in_contexts(case, Node(program, images), tactics, tmp_path, whole))
    check_results(case, tactics, tmp_path, whole)
