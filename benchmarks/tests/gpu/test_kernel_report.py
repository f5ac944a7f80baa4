"""What the report on CUDA kernels finds in machine code."""

from __future__ import annotations

import pytest

from benchmarks.gpu.kernel_report import Use, find_faults, longest_run, parse_byte_loads

SASS = """
arch = sm_90
\t\tFunction : _Z5plainPi
        /*0010*/  LDG.E R2, desc[UR4][R2.64+0x1] ;  /* 0x000 */
\t\tFunction : _Z4agesPh
        /*0010*/  @!P1 LDG.E.U8.CONSTANT R5, desc[UR4][R2.64] ;  /* 0x000 */
        /*0020*/  LDS.U8 R5, [R2+UR5+0x700] ;  /* 0x000 */
        /*0030*/  LDC.U8 R5, c[0x0][0x210] ;  /* 0x000 */
        /*0040*/  STG.E.U8 desc[UR4][R2.64+0x1], R5 ;  /* 0x000 */
arch = sm_80
\t\tFunction : _Z4agesPh
        /*0010*/  LDG.E.S8 R5, [R2.64+-0x1] ;  /* 0x000 */
        /*0020*/  LD.E.U8 R5, [R2.64] ;  /* 0x000 */
        /*0030*/  LDG.E.U8.SYS R5, [R2+0x2] ;  /* 0x000 */
"""


def test_byte_loads_of_each_kernel_and_architecture() -> None:
    found = parse_byte_loads(SASS.splitlines())
    assert found == {"ages": {"sm_90": (2, 1), "sm_80": (3, 2)}}


@pytest.mark.parametrize("base", ["R2", "R14"])
def test_a_double_that_was_torn_is_a_fault(base: str) -> None:
    loads = [
        f"/*0010*/ LDG.E.U8 R{i}, desc[UR4][{base}.64+{hex(16 + i)}] ;" for i in (3, 1, 0, 2, 5, 4)
    ]
    for more in ([], [6, 7]):
        lines = ["arch = sm_90", "Function : _Z4sumsPd", *loads]
        lines += [f"/*0020*/ LDG.E.U8 R{i}, desc[UR4][{base}.64+{hex(16 + i)}] ;" for i in more]
        ((total, torn),) = parse_byte_loads(lines)["sums"].values()
        assert total == torn == len(loads) + len(more)
        faults = find_faults({"sums": {"sm_90": Use(40, 0, 0, total, torn)}})
        assert len(faults) == (1 if more else 0)


def test_local_memory_is_a_fault_but_for_checks_in_float64() -> None:
    use = {"sm_90": Use(80, 16, 0)}
    assert find_faults({"rows<float, true>": use, "rows<double, true>": use}) == [
        "sm_90: 16 bytes of local memory: rows<float, true>"
    ]


@pytest.mark.parametrize(
    ("offsets", "expected"), [([], 0), ([5], 1), ([-1, 0, 1, 3, 4], 3), ([4, 4, 4], 1)]
)
def test_longest_run(offsets: list[int], expected: int) -> None:
    assert longest_run(offsets) == expected
