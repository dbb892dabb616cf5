"""The translator on the shape of PTX: scopes, loops, memory spaces, sites, and what it refuses."""

import re

import numpy as np
import pytest
from emulator import emulated
from emulator.both_paths import run_both, run_path

from cupy_flash import emulator
from cupy_flash._src.emulator.ptx import translate
from cupy_flash._src.emulator.ptx.parser import Instruction, Label, parse


def module(body: str, *, target: int = 80, before: str = "", name: str = "k") -> str:
    return (
        f".version 8.5\n.target sm_{target}\n.address_size 64\n{before}\n"
        f".visible .entry {name}(\n\t.param .u64 {name}_param_0\n)\n{{\n{body}\n}}\n"
    )


def run(body: str, output: np.ndarray, *, threads: int = 32, shared_bytes: int = 0, **kwargs) -> np.ndarray:
    """Run a body whose %out points to `output`; the body declares what else it needs."""
    head = ".reg .b64 %out; .reg .b32 %tid; ld.param.u64 %out, [k_param_0]; mov.u32 %tid, %tid.x;\n"
    text = translate(module(head + body, **kwargs))
    buffer = emulator.Buffer("out", output.ctypes.data, output.nbytes, True)
    params = np.array([output.ctypes.data], np.uint64).tobytes()
    emulator.launch(text, "k", (1,), (threads,), params, shared_bytes, [buffer])
    return output


STORE = ".reg .b64 %o; mad.wide.u32 %o, %tid, 4, %out; st.global.u32 [%o], %r1;"


def test_loops_and_predicates():
    body = f"""
    .reg .b32 %r<4>; .reg .pred %p<2>;
    mov.u32 %r1, 0; mov.u32 %r2, %tid;
$L__BB0_1:
    setp.eq.u32 %p1, %r2, 0;
    @%p1 bra $L__BB0_2;
    add.u32 %r1, %r1, %r2;  // 1 + 2 + ... + tid
    sub.u32 %r2, %r2, 1;
    bra.uni $L__BB0_1;
$L__BB0_2:
    setp.lt.u32 %p1, %tid, 4;
    @!%p1 add.u32 %r1, %r1, 100;
    {STORE} ret;"""
    lane = np.arange(32)
    np.testing.assert_array_equal(run(body, np.zeros(32, np.uint32)), lane * (lane + 1) // 2 + 100 * (lane >= 4))


def test_scopes_hide_registers_and_labels():
    add_5_except_in_lane_3 = """
    { .reg .b32 t; .reg .pred p; setp.eq.u32 p, %tid, 3; @p bra done;
      mov.b32 t, 5; add.u32 %r1, %r1, t; done: }"""
    body = f"""
    .reg .b32 %r<2>; .reg .b32 t; mov.u32 t, 1; mov.u32 %r1, t;
    {add_5_except_in_lane_3}
    {add_5_except_in_lane_3}
    add.u32 %r1, %r1, t; {STORE}"""
    np.testing.assert_array_equal(run(body, np.zeros(32, np.uint32)), np.where(np.arange(32) == 3, 2, 12))


def test_packing_and_discarding():
    body = f"""
    .reg .b32 %r<6>; .reg .b16 %h<3>; .reg .b64 %d<3>;
    mov.b32 %r2, 0x12345678; mov.b32 {{%h1, %h2}}, %r2; mov.b32 %r3, {{%h2, %h1}};  // 0x56781234
    mov.b64 %d1, {{%r3, %r2}}; mov.b64 {{_, %r4}}, %d1;                             // 0x12345678
    xor.b32 %r1, %r3, %r4; {STORE} ret;"""
    assert set(run(body, np.zeros(32, np.uint32))) == {0x12345678 ^ 0x56781234}


def test_local_memory_and_constants():
    body = f"""
    .local .align 16 .b8 __local_depot0[64];
    .reg .b64 %SP, %SPL, %rd<4>; .reg .b32 %r<8>;
    mov.u64 %SPL, __local_depot0; cvta.local.u64 %SP, %SPL;
    st.local.v2.u32 [%SPL+8], {{%tid, 7}};
    ld.local.v2.u32 {{_, %r2}}, [%SPL+8];
    ld.u32 %r3, [%SP+8];
    and.b32 %r4, %tid, 3; mul.wide.u32 %rd1, %r4, 4; mov.u64 %rd2, table; add.s64 %rd3, %rd2, %rd1;
    ld.const.u32 %r5, [%rd3]; ld.const.u32 %r6, [table+4];
    mad.lo.u32 %r1, %r2, 1000, %r3; add.u32 %r1, %r1, %r5; add.u32 %r1, %r1, %r6; {STORE} ret;"""
    before = ".const .align 4 .b32 table[4] = {10, 200, 0x1E, 40};"
    lane = np.arange(32)
    expected = 7000 + lane + np.array([10, 200, 30, 40])[lane % 4] + 200
    np.testing.assert_array_equal(run(body, np.zeros(32, np.uint32), before=before), expected)


def test_generic_addresses_of_shared_memory():
    body = f"""
    .reg .b64 %rd<6>; .reg .b32 %r<3>;
    mov.u64 %rd1, pool; cvta.shared.u64 %rd2, %rd1; mul.wide.u32 %rd3, %tid, 4; add.s64 %rd4, %rd2, %rd3;
    st.u32 [%rd4], %tid; bar.sync 0;
    cvta.to.shared.u64 %rd5, %rd4; xor.b64 %rd5, %rd5, 4; ld.shared.u32 %r1, [%rd5]; {STORE} ret;"""
    before = ".extern .shared .align 16 .b8 pool[];"
    out = run(body, np.zeros(32, np.uint32), before=before, shared_bytes=128)
    np.testing.assert_array_equal(out, np.arange(32) ^ 1)


@pytest.mark.parametrize(
    ("operation", "type_", "start", "fold"),
    [
        ("add", "f32", 0.5, lambda x: 0.5 + x.sum()),
        ("add", "f64", 0.5, lambda x: 0.5 + x.sum()),
        ("add", "u32", 3, lambda x: 3 + x.sum()),
        ("add", "u64", 3, lambda x: 3 + x.sum()),
        ("max", "s32", -5, lambda x: x.max()),
        ("min", "s32", -5, lambda x: -5),
        ("min", "u64", 9, lambda x: x.min()),
        ("or", "b32", 64, lambda x: 64 | np.bitwise_or.reduce(x)),
        ("and", "b32", 255, lambda x: 255 & np.bitwise_and.reduce(x)),
        ("xor", "b32", 255, lambda x: 255 ^ np.bitwise_xor.reduce(x)),
    ],
)
@pytest.mark.parametrize("opcode", ["red", "atom"])
def test_atomics(opcode, operation, type_, start, fold):
    dtype = np.dtype({"f": "f", "s": "i", "u": "u", "b": "u"}[type_[0]] + str(int(type_[1:]) // 8))
    wide = f".b{type_[1:]}"
    convert = f"cvt.rn.{type_}.u32" if type_[0] == "f" else f"cvt.{type_.replace('b', 'u')}.u32"
    value = f".reg {wide} %v<3>; {convert} %v1, %tid;"
    old = "%v2, " if opcode == "atom" else ""
    out = run(f"{value} {opcode}.global.{operation}.{type_} {old}[%out], %v1; ret;", np.array([start], dtype))
    assert out[0] == fold(np.arange(32).astype(dtype))


def test_addition_to_two_neighbours():
    body = "cvt.rn.f32.u32 %f1, %tid; red.relaxed.gpu.global.add.v2.f32 [%out+8], {%f1, 0f3F000000}; ret;"
    out = run(f".reg .b32 %f<2>; {body}", np.ones(4, np.float32), target=90)
    assert out.tolist() == [1, 1, 1 + 496, 1 + 16]
    with pytest.raises(emulator.EmulatorError, match="misaligned"):
        run(f".reg .b32 %f<2>; {body.replace('+8', '+4')}", np.ones(4, np.float32), target=90)


def test_atomics_return_the_old_value_and_exchange():
    body = f""".reg .b32 %r<4>;
    atom.global.add.u32 %r1, [%out+128], 1;
    atom.global.cas.b32 %r2, [%out+132], 7, 9;
    atom.global.exch.b32 %r3, [%out+136], %tid; {STORE} ret;"""
    out = np.zeros(35, np.uint32)
    out[33] = 7
    run(body, out)
    assert sorted(out[:32]) == list(range(32))
    assert out[32] == 32
    assert out[33] == 9
    assert out[34] in range(32)


def test_votes_and_barrier_reductions():
    body = f"""
    .reg .b32 %r<6>; .reg .pred %p<6>;
    and.b32 %r2, %tid, 31;
    setp.lt.u32 %p1|%p2, %r2, 5;
    vote.sync.ballot.b32 %r3, !%p1, -1; popc.b32 %r1, %r3;        // 27
    vote.sync.uni.pred %p3, %p2, -1; @%p3 add.u32 %r1, %r1, 1000;  // not uniform
    bar.red.popc.u32 %r4, 0, %p1; mad.lo.u32 %r1, %r4, 100, %r1;   // 10 of 64 threads
    bar.red.or.pred %p4, 0, %p1; @%p4 add.u32 %r1, %r1, 2000;
    bar.red.and.pred %p5, 0, %p1; @%p5 add.u32 %r1, %r1, 4000; {STORE} ret;"""
    assert set(run(body, np.zeros(64, np.uint32), threads=64)) == {27 + 1000 + 2000}


def test_functions_of_floats():
    """Those that test_ptx_instructions.py leaves out; mad rounds once."""
    functions = {"ex2": np.exp2, "lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh}
    texts = [f"{name}.approx.f32 %r1, %r2;" for name in functions]
    texts += ["mad.rn.f32 %r1, %r2, %r2, %r2;", "max.NaN.f32 %r1, %r2, 0f3F000000;"]
    texts += ["testp.number.f32 %p1, %r2; selp.b32 %r1, 0f3F800000, 0f00000000, %p1;"]
    stores = " ".join(f"{text} st.global.b32 [%o+{128 * (i + 1)}], %r1;" for i, text in enumerate(texts))
    x = np.concatenate([np.random.default_rng(0).uniform(-3, 3, 29), [np.nan, np.inf, -np.inf]]).astype(np.float32)
    out = np.concatenate([x, np.zeros(32 * len(texts), np.float32)])
    body = ".reg .b64 %o; .reg .b32 %r<3>; .reg .pred %p<2>; mad.wide.u32 %o, %tid, 4, %out; ld.global.b32 %r2, [%o];"
    found = run(f"{body} {stores} ret;", out).reshape(-1, 32)[1:]
    with np.errstate(invalid="ignore"):
        exact = [function(x.astype(float)) for function in functions.values()]
        exact += [x.astype(float) ** 2 + x, np.maximum(x, np.float32(0.5)), ~np.isnan(x)]
    for text, row, expected in zip(texts, found, exact, strict=True):
        rtol = 1e-6 if "approx" in text else 0
        np.testing.assert_allclose(row, np.asarray(expected).astype(np.float32), rtol=rtol, atol=rtol, err_msg=text)


def test_barriers_of_some_threads():
    """The second warp waits for what the first has written; each meets alone at a barrier of 32 too."""
    body = f"""
    .reg .b32 %r<5>; .reg .pred %p<3>;
    shl.b32 %r2, %tid, 2; and.b32 %r2, %r2, 127; setp.lt.u32 %p1, %tid, 32; mov.u32 %r1, %tid;
    @!%p1 bra $second;
    st.shared.u32 [%r2], %tid; bar.sync 1, 32; bar.arrive 2, 64; bra $done;
$second:
    bar.sync 2, 64; ld.shared.u32 %r1, [%r2]; setp.lt.u32 %p2, %r1, 5;
    bar.red.popc.u32 %r3, 3, 32, %p2; mad.lo.u32 %r1, %r3, 1000, %r1;
$done:
    {STORE} ret;"""
    out = run(body, np.zeros(64, np.uint32), threads=64, shared_bytes=128)
    np.testing.assert_array_equal(out, np.concatenate([np.arange(32), 5000 + np.arange(32)]))


def test_special_registers():
    """Of every thread of a grid, who come in any order and take a row each."""
    axes = [f"%{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
    lanes = ["%laneid", "%warpid", *(f"%lanemask_{way}" for way in ("eq", "lt", "le", "gt", "ge"))]
    names = [*axes, *lanes, "%dynamic_smem_size", "WARP_SZ"]
    stores = "\n".join(f"mov.u32 %r1, {name}; st.global.u32 [%rd2+{4 * i}], %r1;" for i, name in enumerate(names))
    body = f"""
    .reg .b32 %r<3>; .reg .b64 %rd<3>; .reg .b64 %out; ld.param.u64 %out, [k_param_0];
    atom.global.add.u32 %r2, [%out], 1; mad.wide.u32 %rd1, %r2, {4 * len(names)}, %out; add.s64 %rd2, %rd1, 4;
    {stores} ret;"""
    grid, block = (2, 3, 2), (5, 3, 4)
    expected = []
    for index in np.ndindex(*grid, *block):
        ctaid, tid = index[:3], index[3:]
        thread = tid[0] + block[0] * (tid[1] + block[1] * tid[2])
        one, below = 1 << thread % 32, (1 << thread % 32) - 1
        masks = one, below, below | one, 2**32 - 1 - (below | one), 2**32 - 1 - below
        expected.append((*tid, *ctaid, *block, *grid, thread % 32, thread // 32, *masks, 48, 32))
    out = np.zeros(1 + len(expected) * len(names), np.uint32)
    buffer = emulator.Buffer("out", out.ctypes.data, out.nbytes, True)
    params = np.array([out.ctypes.data], np.uint64).tobytes()
    emulator.launch(translate(module(body)), "k", grid, block, params, 48, [buffer])
    assert sorted(map(tuple, out[1:].reshape(-1, len(names)).tolist())) == sorted(expected)


def test_both_predicates_of_a_comparison():
    """p is BoolOp(a < b, c), q is BoolOp(!(a < b), c)."""
    ways = [(logic, sign) for logic in ("and", "or", "xor") for sign in ("", "!")]
    texts = ["setp.lt.u32 %p1|%p2, %r2, 10;"]
    texts += [f"setp.lt.{logic}.u32 %p1|%p2, %r2, 10, {sign}%p3;" for logic, sign in ways]
    texts += ["mov.pred %p1, %p3; setp.lt.xor.u32 %p1|%p2, %r2, 10, %p1;"]
    bits = "\n".join(
        f"{text} selp.u32 %r3, {1 << 2 * i}, 0, %p1; or.b32 %r1, %r1, %r3;"
        f"selp.u32 %r3, {2 << 2 * i}, 0, %p2; or.b32 %r1, %r1, %r3;"
        for i, text in enumerate(texts)
    )
    body = f"""
    .reg .b32 %r<5>; .reg .pred %p<4>; mov.u32 %r1, 0; mov.u32 %r2, %tid;
    and.b32 %r4, %tid, 1; setp.ne.u32 %p3, %r4, 0;
    {bits} {STORE} ret;"""
    lane = np.arange(32)
    test, odd = lane < 10, lane % 2 == 1
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    pairs = [(test, ~test)]
    pairs += [(combine[op](test, odd ^ (sign == "!")), combine[op](~test, odd ^ (sign == "!"))) for op, sign in ways]
    pairs += [(test ^ odd, ~test ^ odd)]
    expected = sum((p + 2 * q.astype(int)) << 2 * i for i, (p, q) in enumerate(pairs))
    np.testing.assert_array_equal(run(body, np.zeros(32, np.uint32)), expected)


# Statements that leave a number in %r1. %in points to 12 0x82f4 0x8001 0x7fff 200 as halves of words, see below.
READS = [
    # Registers at the width of the type.
    ("cvt.u32.u8 %r1, %h1;", 0xF4),
    ("cvt.s32.s8 %r1, %h1;", -12),
    ("cvt.u32.u16 %r1, %h1;", 0x82F4),
    ("cvt.s32.s16 %r1, %h1;", 0x82F4 - 2**16),
    ("cvt.u16.u8 %h2, %h1; cvt.u32.u16 %r1, %h2;", 0xF4),
    ("cvt.s64.s32 %d2, %r2; mov.b64 {_, %r1}, %d2;", -1),
    ("cvt.u64.u32 %d2, %r2; mov.b64 {_, %r1}, %d2;", 0),
    # Loads into wider registers.
    ("ld.global.u8 %r1, [%in];", 0xF4),
    ("ld.global.s8 %r1, [%in];", -12),
    ("ld.global.u16 %r1, [%in];", 0x82F4),
    ("ld.global.s16 %r1, [%in];", 0x82F4 - 2**16),
    ("ld.global.s32 %d2, [%in]; mov.b64 {_, %r1}, %d2;", -1),
    ("ld.global.u32 %d2, [%in]; mov.b64 {_, %r1}, %d2;", 0),
    ("ld.global.v2.u16 {%r2, %r1}, [%in];", 0x8001),
    ("ld.global.v2.s16 {%r2, %r1}, [%in];", 0x8001 - 2**16),
    ("ld.global.v4.u8 {%r1, %r2, _, _}, [%in];", 0xF4),
    ("ld.global.v4.s8 {%r2, _, _, %r1}, [%in];", -128),
    ("ld.global.v2.s32 {%d2, _}, [%in]; mov.b64 {_, %r1}, %d2;", -1),
    ("ld.global.v2.u32 {%d2, _}, [%in]; mov.b64 {_, %r1}, %d2;", 0),
    # Addresses with offsets.
    ("ld.global.u32 %r1, [%in+4];", 0x7FFF),
    ("ld.global.u32 %r1, [%in+-4];", 12),
    ("add.s64 %d2, %in, 8; ld.u32 %r1, [%d2+-4];", 0x7FFF),
    ("ld.shared.u32 %r1, [pool+8];", 102),
    ("ld.shared.u32 %r1, [8];", 102),
    ("mov.u32 %r2, 8; ld.shared.u32 %r1, [%r2+4];", 103),
    ("mov.u32 %r2, 8; ld.shared.u32 %r1, [%r2+-4];", 101),
    ("mov.u64 %d2, 12; ld.shared.u32 %r1, [%d2+-12];", 100),
    ("mov.u64 %d2, pool; ld.shared.v2.u32 {%r2, %r1}, [%d2+8];", 103),
    ("ld.param.u32 %r1, [k_param_0+4]; mov.b64 {_, %r2}, %out; sub.u32 %r1, %r1, %r2;", 0),
    ("st.local.u32 [depot+8], 7; mov.u64 %d2, depot; add.s64 %d2, %d2, 12; ld.local.u32 %r1, [%d2+-4];", 7),
    ("ld.global.u32 %r1, [table+4];", 0x5FFFE),
    ("mov.u64 %d2, table; ld.global.s16 %r1, [%d2+6];", 5),
]


def test_operands_are_read_at_their_width_and_place():
    before = ".extern .shared .align 16 .b8 pool[];\n.global .align 4 .b16 table[4] = {9, 9, -2, 5};"
    reads = "\n".join(
        f"mov.u32 %r2, 0x800182F4; mov.b32 {{%h1, _}}, %r2; {text} st.global.u32 [%out+{4 * i}], %r1;"
        for i, (text, _) in enumerate(READS)
    )
    words = [12, 0x800182F4, 0x7FFF]
    at = 4 * len(READS)
    body = f"""
    .local .align 16 .b8 depot[16]; .reg .b16 %h<3>; .reg .b32 %r<3>; .reg .b64 %d<3>; .reg .b64 %in;
    add.s64 %in, %out, {at + 4};
    {"".join(f"st.shared.u32 [pool+{4 * i}], {100 + i};" for i in range(4))}
    {reads} ret;"""
    out = np.array([0] * len(READS) + words + [0], np.uint32)
    out = np.concatenate([out, np.zeros(len(out) % 2, np.uint32)])
    run(body, out, threads=1, shared_bytes=16, before=before)
    found = {text: int(x) for (text, _), x in zip(READS, out, strict=False)}
    assert found == {text: value % 2**32 for text, value in READS}


def test_copies_are_waited_for():
    """Unseeded, each lands as late as it may; until then the place holds no number."""
    none = 2**32 - 1
    steps = [
        ("cp.async.ca.shared.global [pool], [%in], 4; cp.async.commit_group;", (none, 7, 7, 7)),
        ("cp.async.ca.shared.global [pool+4], [%in+4], 4; cp.async.commit_group;", (none, none, 7, 7)),
        ("cp.async.wait_group 1;", (1, none, 7, 7)),
        ("cp.async.ca.shared.global [pool+8], [%in+8], 8, 4; cp.async.wait_group 0;", (1, 2, none, none)),
        ("cp.async.wait_all;", (1, 2, 3, 0)),
    ]
    look = "ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [pool];"
    keep = "st.global.v4.u32 [%out+{}], {{%r1, %r2, %r3, %r4}};"
    looks = "\n".join(f"{text} {look} {keep.format(16 * i)}" for i, (text, _) in enumerate(steps))
    body = f"""
    .reg .b32 %r<5>; .reg .b64 %in; add.s64 %in, %out, {16 * len(steps)};
    {"".join(f"st.shared.u32 [pool+{4 * i}], 7;" for i in range(4))}
    {looks} ret;"""
    out = emulated.aligned(4 * len(steps) + 4, np.uint32)
    out[-4:] = 1, 2, 3, 4
    run(body, out, threads=1, shared_bytes=16, before=".extern .shared .align 16 .b8 pool[];")
    assert [tuple(row) for row in out[:-4].reshape(-1, 4).tolist()] == [seen for _, seen in steps]


# ---- what the translator refuses


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (module("\n\n  wgmma.fence.sync.aligned;"), r"wgmma\.fence.*PTX line 11"),
        (module(".reg .f32 %f<4>; add.rz.f32 %f1, %f2, %f3;"), r"add\.rz\.f32"),
        (module(".reg .b32 %r<4>; fma.rn.bf16x2 %r1, %r2, %r3, %r1;"), r"fma\.rn\.bf16x2"),
        (module(".reg .f32 %f<2>; add.f32 %f1, %f1, %f9;"), r"'%f9'"),
        (module("cp.async.commit_group;", target=75), r"needs sm_80, the target is sm_75"),
        (module("ret;").replace(".param .u64 k_param_0", ".param .u64 a, .param .u64 b"), "2 parameters"),
        (module("ret;", before=".func helper() { ret; }"), r"\.func"),
    ],
)
def test_refuses_what_it_does_not_know(text, message):
    with pytest.raises(NotImplementedError, match=message):
        translate(text)


def test_refuses_what_is_not_ptx():
    with pytest.raises(ValueError, match=r"no \.target"):
        translate("int main() {}")


# ---- the parser


def test_parser_reads_lines_files_and_statements_that_share_a_line():
    text = (
        module(
            "  .loc 1 12 3\n  add.u32 %r1, %r1, 1; /* ; */ @!%p1 bra $L; // x;\n/* ret;\n */ $L: ret;\n"
            "  .loc 2 40 5, function_name $L__info_string0, inlined_at 1 13 7\n  bar.sync 0;"
        )
        + '.file 1 "/somewhere/simt/forward.cu"\n.file 2 "/somewhere/ptx/barrier.cuh"\n'
    )
    body = parse(text).entries[0].body
    add, bra, label, ret, bar = body
    assert [type(x) for x in (add, bra, label)] == [Instruction, Instruction, Label]
    assert (bra.predicate, bra.name, bra.operands) == ("!%p1", "bra", ("$L",))
    assert (add.site.file, add.site.line, add.site.ptx_line) == ("simt/forward.cu", 12, 10)
    assert (ret.site.ptx_line, bar.site.ptx_line) == (12, 14)
    # A primitive's own line says little: its caller's line stands for it.
    assert (bar.site.file, bar.site.line) == ("simt/forward.cu", 13)


# ---- errors of translated kernels name the CUDA source

KERNEL = """\
#include "platform.cuh"
#include "ptx/memory.cuh"
struct Params {
  const float* x;
  float* y;
};
extern "C" __global__ void __launch_bounds__(64) shift(const __grid_constant__ Params params) {
  float* shared = &shared_storage<float>();
  const int t = threadIdx.x;
  ptx::Vec<float, 2> pair;
  shared[t] = params.x[t];
  __syncthreads();
  params.y[t] = shared[(t + 1) % 64];
}
"""


def shift(path: str, text: str, **kwargs) -> np.ndarray:
    arrays = {"x": np.arange(64, dtype=np.float32), "y": np.zeros(64, np.float32)}
    return run_path(
        path,
        "shift.cu",
        "shift",
        arrays,
        ["y"],
        virtual={"shift.cu": text},
        block=(64,),
        shared_bytes=256,
        **kwargs,
    )["y"]


def mutated(old: str, new: str) -> str:
    assert KERNEL.count(old) == 1
    return KERNEL.replace(old, new)


@pytest.mark.parametrize("path", ["host", "ptx"])
@pytest.mark.parametrize(
    ("old", "new", "kind", "line"),
    [
        ("__syncthreads();", ";", "shared_race|uninitialised", 13),
        ("params.x[t]", "params.x[t + 1]", "out_of_bounds", 11),
        (
            "__syncthreads();",
            "__syncthreads(); if (t < 32) __syncthreads();",
            "barrier_divergence|deadlock",
            12,
        ),
        ("params.x[t]", "(pair = ptx::load_global<2>(params.x + t))[0] + pair[1]", "misaligned", 11),
    ],
)
def test_seeded_bugs_are_found_on_both_paths_at_their_line(path, old, new, kind, line):
    np.testing.assert_array_equal(shift(path, KERNEL, mode="checked"), np.roll(np.arange(64), -1))
    with pytest.raises(emulator.EmulatorError) as error:
        shift(path, mutated(old, new), mode="checked")
    assert re.fullmatch(kind, error.value.kind)
    assert f"shift.cu:{line}" in str(error.value)


def test_counts_of_both_paths_are_the_same():
    reports = []
    for path in ("host", "ptx"):
        shift(path, KERNEL, mode="counted")
        (report,) = emulator.last_run().launches
        reports.append(report)
    host, ptx = reports
    assert host.buffers == ptx.buffers
    assert host.bytes_read == host.bytes_written == 256
    assert (host.bank_conflicts, host.barriers) == (ptx.bank_conflicts, ptx.barriers) == (0, 1)
    assert host.conflicts == ptx.conflicts


def test_both_paths_follow_a_seed():
    arrays = {"x": np.arange(64, dtype=np.float32), "y": np.zeros(64, np.float32)}
    for seed in range(3):
        host, ptx = run_both(
            *("shift.cu", "shift", arrays, ["y"]),
            virtual={"shift.cu": KERNEL},
            block=(64,),
            shared_bytes=256,
            seed=seed,
        )
        np.testing.assert_array_equal(host["y"], ptx["y"])
