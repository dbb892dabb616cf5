"""Bugs of cuda_src/ptx."""

from bugs import Bug

TEXTS = "tests/emulator/test_ptx_texts.py::"
CONFORMANCE = "tests/emulator/test_ptx_conformance.py::test_paths_agree_with_the_oracle_and_each_other"
OPERANDS = (f"{TEXTS}test_each_instruction_has_its_operands",)
ANSWERS = (f"{TEXTS}test_answers_of_barriers_and_elections",)
WGMMA = (f"{TEXTS}test_every_wgmma_has_its_registers_in_order",)
DESCRIPTORS = ("tests/emulator/test_golden.py::test_descriptors_lead_to_every_element",)


def agree(name: str) -> tuple[str]:
    """The test of a primitive by both paths: its name and architecture."""
    return (f"{CONFORMANCE}[{name}]",)


BUGS = [
    Bug(
        "cuda_src/ptx/barrier.cuh",
        "the number of the barrier and that of its threads change places",
        'asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads)',
        'asm volatile("bar.sync %0, %1;" ::"r"(threads), "r"(id)',
        OPERANDS,
    ),
    Bug(
        "cuda_src/ptx/barrier.cuh",
        "a producer waits for its consumers",
        "bar.arrive %0, %1;",
        "bar.sync %0, %1;",
        agree("named_barrier-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/convert.cuh",
        "ties of bfloat16 are rounded up on Turing",
        "bits + 0x7fffu + (bits >> 16 & 1u)",
        "bits + 0x8000u",
        agree("narrow-sm_75"),
    ),
    Bug(
        "cuda_src/ptx/convert.cuh",
        "infinity becomes NaN in bfloat16 on Turing",
        "(bits & 0x7fffffffu) > 0x7f800000u",
        "(bits & 0x7fffffffu) >= 0x7f800000u",
        agree("narrow-sm_75"),
    ),
    Bug(
        "cuda_src/ptx/convert.cuh",
        "the halves of a bfloat16 pair change places",
        'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));',
        'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(lo), "f"(hi));',
        agree("narrow-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/convert.cuh",
        "the lower half's sign spreads to the upper on Turing",
        "return f16_from_f32(lo) | static_cast<uint32_t>(f16_from_f32(hi)) << 16;",
        "return static_cast<int16_t>(f16_from_f32(lo)) | static_cast<uint32_t>(f16_from_f32(hi)) << 16;",
        agree("narrow-sm_75"),
    ),
    Bug(
        "cuda_src/ptx/cp_async.cuh",
        "copies that no group closed are not waited for",
        "cp.async.wait_all;",
        "cp.async.wait_group 0;",
        agree("cp_async-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/cp_async.cuh",
        "one more group may be in flight",
        '"n"(kPending) : "memory"',
        '"n"(kPending + 1) : "memory"',
        agree("cp_async-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/elect.cuh",
        "half of the warp elects",
        "elect.sync _|p, 0xffffffff;",
        "elect.sync _|p, 0xffff;",
        ANSWERS,
    ),
    Bug(
        "cuda_src/ptx/elect.cuh",
        "all threads but the elected",
        "selp.u32 %0, 1, 0, p;",
        "selp.u32 %0, 0, 1, p;",
        ANSWERS,
    ),
    Bug(
        "cuda_src/ptx/fence.cuh",
        "a fence between threads, not between proxies",
        "fence.proxy.async.shared::cta;",
        "fence.acq_rel.cta;",
        OPERANDS,
    ),
    Bug(
        "cuda_src/ptx/fence.cuh",
        "the order of global memory, not of shared",
        "fence.proxy.async.shared::cta;",
        "fence.proxy.async.global;",
        OPERANDS,
    ),
    Bug(
        "cuda_src/ptx/ldmatrix.cuh",
        "two transposed matrices come as they are",
        "m8n8.x2.trans.shared.b16",
        "m8n8.x2.shared.b16",
        agree("ldmatrix-sm_75"),
    ),
    Bug(
        "cuda_src/ptx/ldmatrix.cuh",
        "the second and third of four matrices change places",
        """m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2])""",
        """m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[2]), "=r"(r[1])""",
        agree("ldmatrix-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/math.cuh",
        "subnormal powers are kept",
        "ex2.approx.ftz.f32",
        "ex2.approx.f32",
        agree("ex2_float32-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/math.cuh",
        "the minimum drops NaN from Ampere on",
        "min.NaN.f32",
        "min.f32",
        agree("min_nan-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/math.cuh",
        "the minimum drops NaN on Turing",
        """#else
  return y < x ? y : x;""",
        """#else
  return x < y ? x : y;""",
        agree("min_nan-sm_75"),
    ),
    Bug(
        "cuda_src/ptx/mbarrier.cuh",
        "an arrival that expects bytes only expects them",
        '"{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"',
        '"mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"',
        OPERANDS,
    ),
    Bug(
        "cuda_src/ptx/mbarrier.cuh",
        "waiting ends before the phase does",
        "while (!mbarrier_try_wait(barrier, parity)) {",
        "while (mbarrier_try_wait(barrier, parity)) {",
        (f"{TEXTS}test_waiting_goes_on_until_the_answer_is_yes",),
    ),
    Bug(
        "cuda_src/ptx/mbarrier.cuh",
        "a test for the phase, not for its parity",
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;",
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], 0;",
        ANSWERS,
    ),
    Bug(
        "cuda_src/ptx/memory.cuh",
        "vectors are copied element by element",
        "struct __align__(sizeof(T) * kCount) Vec {",
        "struct Vec {",
        (f"{TEXTS}test_vectors_are_moved_in_one_access",),
    ),
    Bug(
        "cuda_src/ptx/memory.cuh",
        "vectors wider than an access compile",
        "sizeof(T) * kCount <= 16",
        "sizeof(T) * kCount <= 32",
        (f"{TEXTS}test_vectors_are_moved_in_one_access",),
    ),
    Bug(
        "cuda_src/ptx/memory.cuh",
        "short vectors are as long as the longest",
        "struct __align__(sizeof(T) * kCount) Vec {",
        "struct __align__(16) Vec {",
        agree("memory-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/mma.cuh",
        "the middle registers of A change places in bfloat16",
        """f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, \"""",
        """f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %6, %5, %7}, {%8, %9}, \"""",
        agree("mma_m16n8k16_bf16-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/mma.cuh",
        "Turing adds to D instead of C",
        '"f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));\n}\n\n}',
        '"f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[2]));\n}\n\n}',
        agree("mma_m16n8k8_f16-sm_75"),
    ),
    Bug(
        "cuda_src/ptx/opaque.cuh",
        "the value is still the one it was",
        '"=r"(same) : "r"(value));\n  return same;',
        '"=r"(same) : "r"(value));\n  return value;',
        (f"{TEXTS}test_an_opaque_value_is_no_longer_the_one_it_was",),
    ),
    Bug(
        "cuda_src/ptx/opaque.cuh",
        "the address is still the one it was",
        '"=l"(same) : "l"(value));\n  return same;',
        '"=l"(same) : "l"(value));\n  return value;',
        (f"{TEXTS}test_an_opaque_value_is_no_longer_the_one_it_was",),
    ),
    Bug(
        "cuda_src/ptx/opaque.cuh",
        "nothing is moved",
        'asm volatile("mov.b32 %0, %1;" :',
        'asm volatile("" :',
        (f"{TEXTS}test_an_opaque_value_is_no_longer_the_one_it_was",),
    ),
    Bug(
        "cuda_src/ptx/reduce.cuh",
        "both neighbours get the first value",
        "add.v2.f32 [%0], {%1, %2};",
        "add.v2.f32 [%0], {%1, %1};",
        agree("add_global_pair-sm_90a"),
    ),
    Bug(
        "cuda_src/ptx/reduce.cuh",
        "the larger value stays",
        "red.relaxed.gpu.global.add.f32",
        "red.relaxed.gpu.global.max.s32",
        agree("add_global-sm_75"),
    ),
    Bug(
        "cuda_src/ptx/setmaxnreg.cuh",
        "registers are asked for instead of given up",
        "setmaxnreg.dec.sync.aligned.u32 %0;",
        "setmaxnreg.inc.sync.aligned.u32 %0;",
        (f"{TEXTS}test_registers_change_hands_in_counts_that_the_instruction_takes",),
    ),
    Bug(
        "cuda_src/ptx/setmaxnreg.cuh",
        "counts below 24 compile",
        """void setmaxnreg_inc() {
  static_assert(kCount % 8 == 0 && kCount >= 24""",
        """void setmaxnreg_inc() {
  static_assert(kCount % 8 == 0 && kCount >= 0""",
        (f"{TEXTS}test_registers_change_hands_in_counts_that_the_instruction_takes",),
    ),
    Bug(
        "cuda_src/ptx/shared.cuh",
        "an address of the global window",
        "__cvta_generic_to_shared(pointer)",
        "__cvta_generic_to_global(pointer)",
        (f"{TEXTS}test_an_address_within_the_shared_window",),
    ),
    Bug(
        "cuda_src/ptx/shared.cuh",
        "the lower half of the generic address",
        "__cvta_generic_to_shared(pointer)",
        "reinterpret_cast<uint64_t>(pointer)",
        agree("ldmatrix-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/stmatrix.cuh",
        "a transposed matrix is stored as it is",
        "m8n8.x1.trans.shared.b16",
        "m8n8.x1.shared.b16",
        agree("stmatrix-sm_90a"),
    ),
    Bug(
        "cuda_src/ptx/stmatrix.cuh",
        "the fourth transposed matrix is the third",
        """trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_addr),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])""",
        """trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_addr),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[2])""",
        agree("stmatrix-sm_90a"),
    ),
    Bug(
        "cuda_src/ptx/tma.cuh",
        "a box of three dimensions takes its coordinates outermost first",
        """cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], \"""",
        """cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%5, %4, %3}], \"""",
        OPERANDS,
    ),
    Bug(
        "cuda_src/ptx/tma.cuh",
        "a store's last coordinate is another's",
        """"r"(src), "r"(x0), "r"(x1), "r"(x2), "r"(x3)""",
        """"r"(src), "r"(x0), "r"(x1), "r"(x2), "r"(x2)""",
        OPERANDS,
    ),
    Bug(
        "cuda_src/ptx/tma.cuh",
        "shared memory may be written again only after the whole store",
        "cp.async.bulk.wait_group.read %0;",
        "cp.async.bulk.wait_group %0;",
        OPERANDS,
    ),
    Bug(
        "cuda_src/ptx/warp.cuh",
        "any is all",
        "__any_sync(",
        "__all_sync(",
        agree("vote-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/warp.cuh",
        "values from above ignore the segments",
        "__shfl_down_sync(kFullWarp, value, delta, width)",
        "__shfl_down_sync(kFullWarp, value, delta)",
        agree("shuffle-sm_80"),
    ),
    Bug(
        "cuda_src/ptx/wgmma.cuh",
        "a register of D twice",
        '", %48, %49, %50, %51, %52, %53, %54, %55"',
        '", %48, %49, %50, %51, %52, %53, %54, %54"',
        WGMMA,
    ),
    Bug(
        "cuda_src/ptx/wgmma.cuh",
        "operands behind another number of registers",
        "WGMMA(208, 104, 105, 106,",
        "WGMMA(208, 105, 104, 106,",
        WGMMA,
    ),
    Bug(
        "cuda_src/ptx/wgmma.cuh",
        "the major of B in the place of A's",
        '"n"(static_cast<int>(kMajorA)),            \\\n                   "n"(static_cast<int>(kMajorB)));',
        '"n"(static_cast<int>(kMajorB)),            \\\n                   "n"(static_cast<int>(kMajorA)));',
        WGMMA,
    ),
    Bug(
        "cuda_src/ptx/wgmma.cuh",
        "a step along M or N is 8 rows",
        "kMajor == Major::kK ? 32 : 2048",
        "kMajor == Major::kK ? 32 : 1024",
        DESCRIPTORS,
    ),
    Bug(
        "cuda_src/ptx/wgmma.cuh",
        "no swizzle in the descriptor",
        "static_cast<uint64_t>(1) << 62",
        "static_cast<uint64_t>(1) << 61",
        DESCRIPTORS,
    ),
]
