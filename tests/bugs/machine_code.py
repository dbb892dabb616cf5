"""Bugs of what counts machine code: its control flow, the record, and the tiles' room."""

from bugs import Bug

_SASS, _MACHINE_CODE, _ROOM = (f"tests/test_{name}.py::test_" for name in ("sass", "machine_code", "tile_room"))

BUGS = [
    Bug(
        "benchmarks/sass.py",
        "the longest way is counted",
        "self.copied([i]), self.added([i]), -1",
        "self.copied([i]), self.added([i]), 1",
        (f"{_SASS}of_equal_work_the_shortest_way_is_counted",),
    ),
    Bug(
        "benchmarks/sass.py",
        "copies do not count as work",
        "-self.is_a(i, CALL), self.copied([i])",
        "-self.is_a(i, CALL), 0 * self.copied([i])",
        (f"{_SASS}the_steady_state_copies_vectors",),
    ),
    Bug(
        "benchmarks/sass.py",
        "additions do not count as work",
        "self.added([i]), -1",
        "0 * self.added([i]), -1",
        (f"{_SASS}the_steady_state_adds_to_global_memory",),
    ),
    Bug(
        "benchmarks/sass.py",
        "pairs are single numbers",
        "int(found[1]) if found else 1",
        "1",
        (f"{_SASS}the_steady_state_adds_to_global_memory",),
    ),
    Bug(
        "benchmarks/sass.py",
        "addresses tell how many numbers are added",
        'r"x(\\d)\\b", _opcode(self.instructions[i])',
        'r"x(\\d)\\b", self.instructions[i]',
        (f"{_SASS}the_steady_state_adds_to_global_memory",),
    ),
    Bug(
        "benchmarks/sass.py",
        "rare paths with calls are taken",
        "self.is_a(i, MMA), -self.is_a(i, CALL)",
        "self.is_a(i, MMA), 0 * self.is_a(i, CALL)",
        (f"{_SASS}a_rare_path_that_calls_is_left_aside_though_it_is_shorter",),
    ),
    Bug(
        "benchmarks/sass.py",
        "a branch with a condition behind it is always taken",
        "if guard or condition else jumps",
        "if guard else jumps",
        (f"{_SASS}where_an_instruction_may_lead",),
    ),
    Bug(
        "benchmarks/sass.py",
        "every jump back is a loop",
        "elif j in open_:",
        "elif j in open_ or j < i:",
        (f"{_SASS}a_jump_back_from_a_path_out_of_line_is_no_loop",),
    ),
    Bug(
        "benchmarks/sass.py",
        "the loop around others is the main loop",
        "if not any(other != head and other in body for other in loops):",
        "if True:",
        (f"{_SASS}a_jump_back_from_a_path_out_of_line_is_no_loop",),
    ),
    Bug(
        "benchmarks/sass.py",
        "of several kernels the first is read",
        'text.partition(f".section\\t.text.{entry},")[2]',
        'text.partition(".section\\t.text.")[2]',
        (f"{_SASS}of_several_kernels_one_is_read",),
    ),
    Bug(
        "benchmarks/sass.py",
        "all inner loops are of copies",
        "if body < self.main_loop_body and self.copied(body))",
        "if body < self.main_loop_body)",
        (f"{_SASS}rounds_of_inner_loops_are_told_from_the_rest",),
    ),
    Bug(
        "benchmarks/sass.py",
        "all that loads is as wide",
        "int(bits[1]) // 8 if bits else 4",
        "int(bits[1]) // 8 if bits else 2",
        (f"{_SASS}a_kernel_over_rows_is_counted_by_what_it_loads",),
    ),
    Bug(
        "benchmarks/machine_code.py",
        "rows of another NVRTC are replaced",
        'KEY = ("nvrtc", "arch"',
        'KEY = ("arch", "arch"',
        (f"{_MACHINE_CODE}rows_replace_those_of_the_same_kernel_and_nvrtc",),
    ),
    Bug(
        "benchmarks/machine_code.py",
        "every backward adds to dQ",
        'if value.get("kAtomicDq"):',
        'if "kAtomicDq" in value:',
        (f"{_MACHINE_CODE}a_step_of_the_main_loop",),
    ),
    Bug(
        "benchmarks/machine_code.py",
        "keys stream past the kernel that owns them",
        'streamed = m if kernel.entry == "attention_dkdv" else n',
        "streamed = n",
        (f"{_MACHINE_CODE}a_step_of_the_main_loop",),
    ),
    Bug(
        "benchmarks/tile_room.py",
        "blocks have the multiprocessor to themselves",
        "together = self.tile.min_blocks * self.device",
        "together = self.device",
        (f"{_ROOM}as_many_stages_fit_as_are_told",),
    ),
    Bug(
        "benchmarks/tile_room.py",
        "one stage beyond what fits",
        "return max(takewhile(fit, count(1)))",
        "return 1 + max(takewhile(fit, count(1)))",
        (f"{_ROOM}as_many_stages_fit_as_are_told",),
    ),
    Bug(
        "benchmarks/tile_room.py",
        "warps of one block are all",
        "return self.tile.min_blocks * self.tile.num_warps",
        "return self.tile.num_warps",
        (f"{_ROOM}room_is_used_or_there_is_a_reason",),
    ),
]
