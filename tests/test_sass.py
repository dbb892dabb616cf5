"""`benchmarks/sass.py` on small programs written by hand."""

import pytest
from sass import DIVISION, KINDS, Code

HMMA = "HMMA.16816.F32 R4, R8, R12, R4"
COPY = "LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64+0x40], P1"
COPY_8 = "LDGSTS.E.64 [R3], desc[UR4][R6.64], P1"
COLUMN = "LDGSTS.E [R3], desc[UR4][R6.64], P1"
GATHER = "@!P2 LDG.E.U16 R3, desc[UR4][R6.64]"
CALL = "CALL.REL.NOINC `($__internal_0_$__cuda_sm20_rcp_rn_ftz_f32_slowpath)"
DIVIDE = "I2F.U32.RP R3, R4"


def listing(*lines, entry="kernel"):
    """What ``nvdisasm -c`` prints of a kernel; a line that ends in a colon is a label."""
    text, address = f'\t.section\t.text.{entry},"ax",@progbits\n\t.sectionflags\t@"SHI_REGISTERS=9"\n{entry}:\n', 0
    for line in lines:
        if line.endswith(":"):
            text += f"{line}\n"
        else:
            text += f"        /*{address:04x}*/                   {line} ;\n"
            address += 16
    return f"{text}.L_x_end:\n"


def code(*lines):
    return Code.parse(listing(*lines), "kernel")


def loop(*lines):
    """A kernel with these lines in its main loop, behind a matrix product."""
    return code("MOV R1, c[0x0][0x28]", ".L_head:", HMMA, *lines, "@P0 BRA `(.L_head)", "EXIT")


def either(one, other):
    """A branch to one of two."""
    return "@P1 BRA `(.L_other)", *one, "BRA `(.L_both)", ".L_other:", *other, ".L_both:"


def words(program, path):
    return [program.instructions[i].partition(" ")[0] for i in path]


def test_of_equal_work_the_shortest_way_is_counted():
    program = loop("@!P1 BRA `(.L_1)", "FSEL R4, R4, -INF , P2", "FSEL R5, R5, -INF , P2", ".L_1:", "FADD R4, R4, R5")
    assert words(program, program.main_loop) == ["HMMA.16816.F32", "@!P1", "FADD", "@P0"]
    assert len(program.main_loop_body) == 6 and program.count("FSEL") == 2


def test_a_rare_path_that_calls_is_left_aside_though_it_is_shorter():
    program = loop(*either([CALL], ["MUFU.RCP R5, R4", "FFMA R6, R5, R4, -1", "FFMA R6, R6, R5, R5"]))
    assert words(program, program.main_loop) == ["HMMA.16816.F32", "@P1", "MUFU.RCP", "FFMA", "FFMA", "@P0"]


@pytest.mark.parametrize(("one", "other", "taken"), [
    ([GATHER] * 3, [COPY], [COPY]), ([], [COPY] * 2, [COPY] * 2), ([COPY_8] * 4, [COPY] * 2, [COPY] * 2),
    ([COPY_8] * 3, [COPY], [COPY_8] * 3), ([COLUMN] * 3, ["MOV R1, R2"], ["MOV R1, R2"]),
    (["LD.E.128 R8, [R4]", "MOV R1, R2"], [COLUMN], ["LD.E.128 R8, [R4]", "MOV R1, R2"]),
])  # fmt: skip
def test_the_steady_state_copies_vectors(one, other, taken):
    """As many bytes as it can, by the fewest instructions; single numbers are copied by some threads only."""
    for first, second in ((one, other), (other, one)):
        program = loop(*either(first, second))
        found = [program.instructions[i] for i in program.main_loop]
        assert [line for line in found if not line.startswith(("HMMA", "@P0", "@P1", "BRA"))] == taken
        assert program.copied(program.main_loop) == sum(16 * ("128" in line) + 8 * (".64 [" in line) for line in taken)


def test_the_steady_state_adds_to_global_memory():
    """Each behind a branch; pairs rather than single numbers, at whatever address."""

    def additions(kind, *addresses):
        for address in addresses:
            label = f".L_{kind}_{address}"
            yield f"@!P4 BRA `({label})"
            yield f"REDG.E.ADD.{kind}.FTZ.RN.STRONG.GPU desc[UR6][R8.64+{address}], R9"
            yield f"{label}:"

    one, two = additions("F32", "0x0", "0x4", "0x2", "0x8"), additions("F32x2", "0x0", "0x8")
    program = loop(*either(one, two))
    assert program.count(r"REDG[.\w]*F32x2", program.main_loop) == program.count("RED", program.main_loop) == 2
    assert program.added(program.main_loop) == 4


@pytest.mark.parametrize(("jump", "conditional"), [
    ("BRA `(.L_there)", False), ("BRA.U `(.L_there)", False), ("@P1 BRA `(.L_there)", True),
    ("@!UP0 BRA `(.L_there)", True), ("BRA P1, `(.L_there)", True), ("@P0 BRA !P1, `(.L_there)", True),
    ("BRA.U !UP0, `(.L_there)", True), ("BRA.DIV UR4, `(.L_there)", True), ("@P0 EXIT", True), ("EXIT", False),
    ("BSSY B0, `(.L_there)", True), ("WARPSYNC.COLLECTIVE R3, `(.L_there)", True), (CALL, True),
    ("BRX R2 -0x1c0  (*\"BRANCH_TARGETS .L_there,.L_end\"*)", False),
])  # fmt: skip
def test_where_an_instruction_may_lead(jump, conditional):
    """On, unless nothing says when not; elsewhere by a jump only."""
    program = code(jump, "MOV R1, R2", ".L_there:", "MOV R3, R4", ".L_end:", "EXIT")
    elsewhere = {"BRA": [2], "BRX": [2, 3]}.get(jump.split()[jump.startswith("@")][:3], [])
    assert program.successors[0] == [1] * conditional + elsewhere


def test_a_jump_back_from_a_path_out_of_line_is_no_loop():
    """Nor is the main loop that around another, nor of two with products the longer."""
    program = code("@P1 BRA `(.L_rare)", ".L_back:", HMMA, "EXIT", ".L_rare:", "MOV R1, R2", "BRA `(.L_back)")
    assert not program.loops
    with pytest.raises(ValueError, match="no loop has a matrix product"):
        _ = program.main_loop
    program = code(
        ".L_outer:", "MOV R1, R2", ".L_masked:", HMMA, "FSEL R1, R2, R3, P1", "@P0 BRA `(.L_masked)",
        ".L_whole:", HMMA, "@P0 BRA `(.L_whole)", "@P0 BRA `(.L_outer)", "EXIT",
    )  # fmt: skip
    assert len(program.loops) == 3 and program.main_loop == [4, 5]


def test_rounds_of_inner_loops_are_told_from_the_rest():
    program = loop(
        ".L_pass:", "LDG.E.128 R8, desc[UR4][R6.64]", "@P3 BRA `(.L_pass)", ".L_gather:", GATHER, "@P3 BRA `(.L_gather)"
    )
    assert len(program.main_loop) == 6
    assert program.inner_copies == {2, 3}


def test_what_comes_before_and_after_the_loop():
    """Entry to first copy by the shortest way; after it by that which stores vectors; divisions on all."""
    program = code(
        DIVIDE, "@P1 BRA `(.L_vectors)", GATHER, GATHER, "BRA `(.L_start)", ".L_vectors:", "IMAD R1, R2, R3, R4", COPY,
        DIVIDE, ".L_start:", "@!P1 BRA `(.L_done)", ".L_head:", HMMA, DIVIDE, "@P0 BRA `(.L_head)", ".L_done:", DIVIDE,
        "@P2 EXIT", "@P1 BRA `(.L_partial)", "LDS.128 R4, [R2]", "STG.E.128 desc[UR4][R2.64], R4", "EXIT",
        ".L_partial:", "STG.E desc[UR4][R2.64], R4", "EXIT",
    )  # fmt: skip
    assert words(program, program.before_copies) == ["I2F.U32.RP", "@P1", "IMAD", "LDGSTS.E.BYPASS.128"]
    assert words(program, program.after_loop) == ["I2F.U32.RP", "@P2", "@P1", "LDS.128", "STG.E.128", "EXIT"]
    assert program.sites(DIVISION) == (2, 1, 1)
    assert program.sites("I2F|LDS") == (2, 1, 2)


@pytest.mark.parametrize(("loaded", "length", "loads"), [(0, 1, 0), (4, 7, 2), (12, 11, 4), (20, 14, 6)])
def test_a_kernel_over_rows_is_counted_by_what_it_loads(loaded, length, loads):
    """The loop as often as that takes, and not the shorter way that calls."""
    program = code(
        "@P0 EXIT", "@P1 BRA `(.L_whole)", CALL, "BRA `(.L_start)", ".L_whole:", "MOV R1, R2", "MOV R3, R4",
        ".L_start:", "LDG.E.U16 R3, [R4.64]", "LDG.E.U16 R4, [R4.64]", "@P2 EXIT",
        ".L_row:", "LDG.E R3, [R4.64]", "LDG.E R5, [R4.64]", "@P3 BRA `(.L_row)", "EXIT",
    )  # fmt: skip
    way = program.through(loaded)
    assert (len(way), program.count("LDG", way), program.count("CALL", way)) == (length, loads, 0)
    with pytest.raises(ValueError, match="loads 6 bytes a lane"):
        program.through(6)


@pytest.mark.parametrize(("kind", "instructions"), [
    ("HMMA", ["HMMA.1688.F32 R4, R8, R12, R4"]),
    ("LDSM", ["LDSM.16.MT88.4 R4, [R5]"]),
    ("copy", [COPY, GATHER, "LD.E.U16 R4, [R4.64]"]),
    ("LDS/STS", ["LDS R4, [R5]", "STS.128 [R5], R4"]),
    ("MUFU", ["MUFU.EX2 R4, R5"]),
    ("move", ["CS2R R4, SRZ", "@P0 IMAD.MOV.U32 R4, RZ, RZ, R5", "HFMA2.MMA R4, -RZ, RZ, 0, 0", "MOV R4, R5"]),
    ("float", ["HFMA2 R4, R5, R6, R7", "FMNMX.FTZ R4, R5, R6, !PT", "@!P0 FADD R4, R5, R6", "DMUL R4, R6, R8"]),
    ("float", ["FSETP.GE.FTZ.AND P0, PT, R4, R5, PT", "FSEL R4, R5, R6, P0"]),
    ("convert", ["F2FP.F16.F32.PACK_AB R4, R5, R6", "I2FP.F32.S32 R4, R5", DIVIDE, "F2I.FTZ.U32.TRUNC.NTZ R4, R5"]),
    ("integer", ["IMAD.WIDE.U32 R4, R5, R6, R8", "IMAD.IADD R4, R5, 0x1, R6", "IADD3.X R4, R5, R6, RZ, P0, !PT"]),
    ("integer", ["VIADD R4, R5, 0x1", "VIMNMX R4, R5, R6, PT", "LEA.HI.X R4, R5, R6, R7, 0x1, P0", "IABS R4, R5"]),
    ("integer", ["LOP3.LUT R4, R5, 0x7, RZ, 0xc0, !PT", "SEL R4, R5, R6, P0", "SHF.R.S32.HI R4, RZ, 0x1f, R5"]),
    ("predicate", ["ISETP.GE.AND P0, PT, R4, R5, PT", "VOTE.ANY P0, P0", "P2R R4, PR, RZ, 0x1"]),
    ("barrier", ["BAR.SYNC.DEFER_BLOCKING 0x0", "DEPBAR.LE SB0, 0x1", "LDGDEPBAR"]),
    ("branch", ["@!P0 BRA `(.L_end)", "BSSY B0, `(.L_end)", "BMOV.32.CLEAR R4, B0", "BSYNC B0", CALL]),
    ("RED", ["REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR6][R8.64], R9"]),
    ("uniform", ["ULDC.64 UR4, c[0x0][0x208]", "S2R R4, SR_TID.X", "R2UR UR4, R5", "LDC.64 R4, c[0x0][0x210]"]),
    ("other", ["SHFL.BFLY PT, R4, R5, 0x1, 0x1f", "STG.E.128 desc[UR4][R2.64], R4", "NOP"]),
])  # fmt: skip
def test_kinds_of_instructions(kind, instructions):
    program = code(*instructions, ".L_end:", "EXIT")
    assert program.kinds(range(len(instructions))) == {kind: len(instructions)}
    assert kind in KINDS


def test_of_several_kernels_one_is_read():
    text = (
        listing(HMMA, "EXIT", entry="first") + listing("EXIT", entry="second") + listing(HMMA, "NOP", entry="seconds")
    )
    assert Code.parse(text, "second").instructions == ["EXIT"]
    with pytest.raises(ValueError, match="no instructions of third"):
        Code.parse(text, "third")
