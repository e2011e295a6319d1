from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from benchmarks import kernel_report, machine_code
from cbam_deploy.plugins.compile import CompiledKernels
from cbam_deploy.plugins.entries import Kernel
from cbam_deploy.plugins.geometry import CLUSTER_SIZES, KNOWN_DEVICES
from cbam_deploy.plugins.launches import Launch
from cbam_deploy.plugins.stages import Stage

LOG = """\
ptxas info    : Compiling entry function 'other' for 'sm_90'
ptxas info    : Function properties for other
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers
ptxas info    : Compiling entry function 'mine_0f' for 'sm_90'
ptxas info    : Function properties for mine_0f
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size, 96 bytes smem
"""
LAUNCH = Launch("channel_excitation", Kernel("mine_0f", ""), None, 1, 1, 256, 1024, (), (), ())


def test_usage_is_read_from_the_compilers_own_words():
    compiled = CompiledKernels("sm_90", b"", ("mine_0f",), LOG)
    usage = kernel_report.read_usage(compiled, LAUNCH, 90)
    assert usage == kernel_report.Usage("mine", ("", ""), 90, 256, 64, 16, 8, 96, 1024)
    assert len(list(usage.problems(KNOWN_DEVICES[90]))) == 2


def test_a_silent_compiler_is_an_error_and_not_a_clean_report():
    compiled = CompiledKernels("sm_90", b"", ("absent_0f",), LOG)
    absent = replace(LAUNCH, kernel=Kernel("absent_0f", ""))
    with pytest.raises(RuntimeError, match="nothing of absent"):
        kernel_report.read_usage(compiled, absent, 90)


def test_the_planned_kernels_are_of_every_kind():
    launches = kernel_report.planned_launches(KNOWN_DEVICES[90])
    kinds = {name.rpartition("_")[0] for name in launches}
    assert {"cbam_gate", "cbam_gate_add_relu", "se_gate", "se_gate_add_relu"} < kinds
    assert {"eca_gate_add_gelu", "scse_gate_apply_programmatic", "cbam_gate_spatial_first"} < kinds
    assert {launch.stage for launch in launches.values()} == set(get_args(Stage))
    assert {launch.cluster for launch in launches.values()} <= set(CLUSTER_SIZES)
    for element in ("float", "__half", "__nv_bfloat16", "signed char"):
        assert any(f"Tiling<{element}," in one.kernel.text for one in launches.values())


def test_report_refuses_spills_local_memory_registers_and_shared_memory():
    limits = KNOWN_DEVICES[75]
    fine = kernel_report.Usage("k", ("", ""), 75, 256, 64, 0, 0, 0, 1024)
    assert list(fine.problems(limits)) == []
    for change, word in (
        ({"spill_bytes": 4}, "spills"),
        ({"stack_bytes": 8}, "local"),
        ({"registers": 200, "threads": 512}, "registers"),
        ({"shared_bytes": 65 * 1024}, "shared"),
    ):
        (problem,) = replace(fine, **change).problems(limits)
        assert word in problem


def test_report_table_has_a_row_per_kernel_and_type():
    maps = ("float16 nhwc k=7", "8")
    usages = [
        kernel_report.Usage("cbam_gate", maps, number, 512, 90 + number, 0, 0, 0, 2048)
        for number in (90, 100)
    ]
    text = kernel_report.markdown(usages)
    assert "| `cbam_gate` | float16 nhwc k=7 | 8 | 512 | 2 | 2.0 | 180 | 190 |" in text


LISTING = """\
.L_x_0:
        /*0000*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R0 ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   ISETP.GE.AND P1, PT, R2, R3, PT ;
.L_x_2:
        /*0030*/                   LDS.128 R4, [R77] ;
        /*0040*/                   LDS.128 R8, [R77+0x10] ;
        /*0050*/               @P1 LDG.E.128.CONSTANT R12, desc[UR8][R74.64] ;
        /*0060*/                   LDS.128 R16, [R77+0x30] ;
        /*0070*/                   I2F.S8 R5, R5 ;
        /*0080*/              @!P2 BRA `(.L_x_2) ;
        /*0090*/                   SHFL.BFLY PT, R51, R51, 0x10, 0x1f ;
        /*00a0*/              @!P3 BRA `(.L_x_1) ;
.L_x_3:
        /*00b0*/                   LDG.E R4, desc[UR8][R74.64] ;
        /*00c0*/               @P0 BRA `(.L_x_3) ;
        /*00d0*/                   MEMBAR.ALL.CTA ;
        /*00e0*/                   MEMBAR.ALL.GPU ;
        /*00f0*/                   EXIT ;
"""


def test_machine_code_is_counted_by_loops_over_the_map():
    """The row loop of nine instructions, in which a thread handles four vectors."""
    counted = machine_code.read(LISTING, vector=8)
    assert counted == machine_code.MachineCode(16, per_64_elements=18, fences=1, conversions=1)
    assert machine_code.read(LISTING, vector=None).per_64_elements is None


def test_loops_that_sum_up_behind_barriers_count_alone():
    behind_barrier = LISTING.replace("SHFL.BFLY PT, R51, R51, 0x10, 0x1f", "BAR.SYNC 0x0")
    assert machine_code.read(behind_barrier, vector=8).per_64_elements == 12


def test_report_has_a_second_table_where_machine_code_was_read():
    code = machine_code.MachineCode(2888, 1280, 0, 3)
    maps = ("float16 nhwc k=7", "8")
    usage = kernel_report.Usage("cbam_gate", maps, 90, 512, 101, 0, 0, 0, 2048, code)
    text = kernel_report.markdown([usage])
    assert "| `cbam_gate` | float16 nhwc k=7 | 8 | 512 | 2888 | 1280 | 0 | 3 |" in text
