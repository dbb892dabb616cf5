"""Inline PTX that the emulator cannot run, or that tells the compiler more than it does: its text in NVRTC's PTX.

Operands stand in it by the names of the kernel's parameters; the instructions are written from the PTX ISA's syntax.
"""

import re

import pytest

from cupy_flash._src import source
from cupy_flash._src.compile import text_to_ptx

HEADERS = ("barrier", "cp_async", "elect", "fence", "mbarrier", "memory", "opaque", "reduce", "setmaxnreg")
HEADERS += ("shared", "tma", "wgmma")
# Parameters of every kernel, with their names in the instructions.
PARAMETERS = {
    "map": "const __grid_constant__ ptx::TensorMap",
    "memory": "float*",
    **dict.fromkeys(("to", "barrier", "count", "parity"), "uint32_t"),
    **dict.fromkeys(("x0", "x1", "x2", "x3"), "int"),
    **dict.fromkeys(("a", "b"), "uint64_t"),
    **dict.fromkeys(("p", "q"), "float"),
}


def ptx_of(body, arch="sm_90a"):
    includes = "".join(f'#include "ptx/{header}.cuh"\n' for header in HEADERS)
    parameters = ", ".join(f"{type_} {name}" for name, type_ in PARAMETERS.items())
    text = f'#include "platform.cuh"\n{includes}extern "C" __global__ void kernel({parameters}) {{\n{body}\n}}\n'
    return text_to_ptx(source.flatten("kernel.cu", virtual={"kernel.cu": text}), "kernel.cu", arch)


def inline(ptx):
    """The inline instructions in order; registers by the parameter, the constant or the place in memory they hold."""
    names, found = {}, []
    places = {f"kernel_param_{i}": name for i, name in enumerate(PARAMETERS)}

    def name(text):
        return names.get(text, text)

    lines = iter(ptx.splitlines())
    for line in lines:
        if "begin inline asm" in line:
            text = " ".join(part.strip() for part in iter(lambda: next(lines), "\t// end inline asm"))
            found.append(re.sub(r"%\w+", lambda register: name(register[0]), text))
        elif move := re.match(r"\s+(?:ld\.param|mov|cvta[\w.]*)\.\w+\s+(%\w+), \[?([\w%-]+)\]?;", line):
            names[move[1]] = places.get(move[2], name(move[2]))
        elif load := re.match(r"\s+ld\.global\.\w+\s+(%\w+), \[(%\w+)\+?(\d*)\];", line):
            names[load[1]] = f"{name(load[2])}{int(load[3] or 0) // 4}"
    return found


LOAD = "cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes [to], [map, {{{}}}], [barrier];"
STORE = "cp.async.bulk.tensor.{}d.global.shared::cta.bulk_group [map, {{{}}}], [to];"
X = {n: ", ".join(f"x{i}" for i in range(n)) for n in (2, 3, 4)}
# A call and its instruction.
CALLS = {
    "barrier_sync(count, parity)": "bar.sync count, parity;",
    "barrier_arrive(count, parity)": "bar.arrive count, parity;",
    "cp_async_16(to, memory, count)": "cp.async.cg.shared.global [to], [memory], 16, count;",
    "cp_async_8(to, memory, count)": "cp.async.ca.shared.global [to], [memory], 8, count;",
    "cp_async_4(to, memory, count)": "cp.async.ca.shared.global [to], [memory], 4, count;",
    "cp_async_commit()": "cp.async.commit_group;",
    "cp_async_wait<3>()": "cp.async.wait_group 3;",
    "cp_async_wait_all()": "cp.async.wait_all;",
    "fence_proxy_async()": "fence.proxy.async.shared::cta;",
    "mbarrier_init(barrier, count)": "mbarrier.init.shared::cta.b64 [barrier], count;",
    "mbarrier_fence_init()": "fence.mbarrier_init.release.cluster;",
    "mbarrier_inval(barrier)": "mbarrier.inval.shared::cta.b64 [barrier];",
    "mbarrier_arrive(barrier)": "{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [barrier]; }",
    "mbarrier_expect_tx(barrier, count)": "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [barrier], count;",
    "mbarrier_arrive_expect_tx(barrier, count)":
        "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [barrier], count; }",
    "add_global(memory, p)": "red.relaxed.gpu.global.add.f32 [memory], p;",
    "add_global(memory, p, q)": "red.relaxed.gpu.global.add.v2.f32 [memory], {p, q};",
    "tma_prefetch_map(map)": "prefetch.tensormap [map];",
    **{f"tma_load_{n}d(to, map, barrier, {x})": LOAD.format(n, x) for n, x in X.items()},
    **{f"tma_store_{n}d(map, to, {x})": STORE.format(n, x) for n, x in X.items()},
    "bulk_load(to, memory, count, barrier)":
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [to], [memory], count, [barrier];",
    "bulk_add_f32(memory, to, count)":
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [memory], [to], count;",
    "bulk_commit()": "cp.async.bulk.commit_group;",
    "bulk_wait<2>()": "cp.async.bulk.wait_group 2;",
    "bulk_wait_read<2>()": "cp.async.bulk.wait_group.read 2;",
    "wgmma_fence()": "wgmma.fence.sync.aligned;",
    "wgmma_commit()": "wgmma.commit_group.sync.aligned;",
    "wgmma_wait<1>()": "wgmma.wait_group.sync.aligned 1;",
}  # fmt: skip


def test_each_instruction_has_its_operands():
    texts = inline(ptx_of("\n".join(f"  ptx::{call};" for call in CALLS)))
    assert [re.sub(r"\s+", " ", text) for text in texts] == list(CALLS.values())


def test_answers_of_barriers_and_elections():
    body = "memory[0] = ptx::mbarrier_test_wait(barrier, parity); memory[1] = ptx::mbarrier_try_wait(barrier, parity);"
    *waits, elect = (re.sub(r"%r\d+", "yes", text) for text in inline(ptx_of(body + "memory[2] = ptx::elect_one();")))
    assert waits == [
        f"{{ .reg .pred p; mbarrier.{kind}_wait.parity.shared::cta.b64 p, [barrier], parity; selp.u32 yes, 1, 0, p; }}"
        for kind in ("test", "try")
    ]
    assert elect == "{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 yes, 1, 0, p; }"


def test_waiting_goes_on_until_the_answer_is_yes():
    ptx = ptx_of("ptx::mbarrier_wait(barrier, parity);")
    (label,) = re.findall(r"^(\$\w+):", ptx, re.MULTILINE)[:1]
    loop = ptx[ptx.index(f"{label}:") :]
    answer = re.search(r"try_wait.*selp\.u32 (%r\d+),", loop)[1]
    compare, predicate = re.search(rf"setp\.(eq|ne)\.s32\s+(%p\d+), {answer}, 0;", loop).groups()
    (negated,) = re.findall(rf"@(!?){predicate} bra\s+{re.escape(label)};", loop)
    assert (compare == "eq") != bool(negated)


def test_an_opaque_value_is_no_longer_the_one_it_was():
    """x ^ x would be 0, and a pointer equal to itself."""
    ptx = ptx_of("  memory[0] = count ^ ptx::opaque(count);\n  memory[1] = memory == ptx::opaque(memory);")
    number, address = inline(ptx)
    assert re.fullmatch(r"mov\.b32 %r\d+, count;", number) and "xor.b32" in ptx
    assert re.fullmatch(r"mov\.b64 %rd\d+, \S+;", address) and "setp.eq.s64" in ptx


def test_an_address_within_the_shared_window():
    assert "cvta.to.shared.u64" in ptx_of("  memory[0] = ptx::shared_address(memory);")


def test_vectors_are_moved_in_one_access():
    ptx = ptx_of("  ptx::store_global(memory, ptx::load_global<4>(memory + 4));\n"
                 "  ptx::store_global(memory + 8, ptx::load_global<2>(memory + 10));")  # fmt: skip
    assert re.findall(r"(?:ld|st)\.global\.(\S+)", ptx) == ["v4.f32", "v4.f32", "v2.f32", "v2.f32"]
    with pytest.raises(RuntimeError, match="at most 16 bytes"):
        ptx_of("  ptx::store_global(memory, ptx::load_global<8>(memory));")


@pytest.mark.parametrize("direction", ["inc", "dec"])
def test_registers_change_hands_in_counts_that_the_instruction_takes(direction):
    counts = [24, 32, 256]
    assert inline(ptx_of("".join(f"  ptx::setmaxnreg_{direction}<{n}>();\n" for n in counts))) == [
        f"setmaxnreg.{direction}.sync.aligned.u32 {n};" for n in counts
    ]
    for n in (16, 28, 264):
        with pytest.raises(RuntimeError, match="a multiple of 8"):
            ptx_of(f"  ptx::setmaxnreg_{direction}<{n}>();")


WGMMA = (
    "{{ .reg .pred p; setp.ne.b32 p, {}, 0; "
    "wgmma.mma_async.sync.aligned.m64n{}k16.f32.{}.{} {{{}}}, {}, p, 1, 1, {}; }}"
)


def test_every_wgmma_has_its_registers_in_order():
    """D from memory, so that register i of it holds memory[i]; the majors of A and B are 0 for K, 1 for M or N."""
    body, expected = [], []
    for n in range(16, 257, 16):
        for type_ in ("f16", "bf16") if n in (16, 256) else ("f16",):
            d = ", ".join(f"memory{i}" for i in range(n // 2))
            load = f"  {{ float d[{n // 2}]; for (int i = 0; i < {n // 2}; ++i) d[i] = memory[i];"
            store = f"for (int i = 0; i < {n // 2}; ++i) memory[i] = d[i]; }}"
            body += [
                f"{load} ptx::wgmma_{type_}<ptx::Major::kK, ptx::Major::kMN>(d, a, b, true); {store}",
                f"{load} const uint32_t r[4] = {{to, barrier, count, parity}};",
                f"ptx::wgmma_{type_}<ptx::Major::kMN>(d, r, b, false); {store}",
            ]
            expected.append(WGMMA.format(1, n, type_, type_, d, "a, b", "0, 1"))
            expected.append(WGMMA.format(0, n, type_, type_, d, "{to, barrier, count, parity}, b", "1"))
    assert inline(ptx_of("\n".join(body))) == expected


def test_wgmmas_registers_are_pinned():
    """What is read before the pin is not what is read after it."""
    ptx = ptx_of("  float d[2] = {p, q};\n  uint32_t r[1] = {count};\n  ptx::wgmma_pin(d);\n  ptx::wgmma_pin(r);\n"
                 "  memory[0] = d[0] - p; memory[1] = d[1] - q; memory[2] = r[0] ^ count;")  # fmt: skip
    assert len(re.findall(r"(?:sub|xor)\.\w+", ptx)) == len(inline(ptx)) == 3
