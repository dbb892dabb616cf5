"""What errors call a place: its line with the lines that it is inlined in, and the member of shared memory there."""

import os
import struct
from pathlib import Path

import emulated
import numpy as np
import pytest
from emulated import line_of
from hypothesis import given
from hypothesis import strategies as st

from cupy_flash import emulator
from cupy_flash._src.emulator import dwarf, layout, lines
from cupy_flash._src.emulator.errors import Site
from cupy_flash._src.emulator.layout import member
from cupy_flash._src.emulator.lines import find_site
from cupy_flash._src.toolchain import compile_shared, find_compiler
from cupy_flash.emulator import EmulatorError

# ---- chains of inlined lines. Each case ends in a helper, which two lines call through another one: one after the
# other, as of two branches a compiler makes one.
CALLS = """
#include "platform.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "ptx/shared.cuh"
struct Params { float* out; int first, second, by; };
struct Storage { alignas(16) float x[64]; };

__device__ __forceinline__ void reach(Storage& s, const Params& p, int what, int t, int i) {
  float d[4] = {};
  uint32_t a[4] = {}, b[2] = {};
  if (what == 1) p.out[i] = 1.0f;                                               // a global write
  if (what == 2) s.x[i] = 1.0f;                                                 // a shared write
  if (what == 3) __trap();                                                      // a trap
  if (what == 4) p.out[1 << p.by] = 1.0f;                                       // a shift
  if (what == 5) ptx::cp_async_16(ptx::shared_address(s.x + i), p.out, 16);     // a copy
  if (what == 6) ptx::ldmatrix_x4(a, ptx::shared_address(s.x + i));             // a matrix load
  if (what == 7 && t < 16) ptx::mma_m16n8k16_f16(d, a, b, d);                   // a product
  if (what == 8 && t < 16) ptx::barrier_sync(2, 32);                            // a barrier
  if (what == 9 && t < 16) __syncthreads();                                     // a block barrier
  if (what == 10 && t < 16) d[0] = __shfl_xor_sync(0xffffffffu, d[0], 1);       // a shuffle
  if (what == 11) atomicAdd(p.out + i, 1.0f);                                   // an atomic
  p.out[t] = d[0] + __uint_as_float(a[0]);
}
__device__ __forceinline__ void through(Storage& s, const Params& p, int what, int t, int i) {
  reach(s, p, what, t, i);                                                      // between
}
extern "C" __global__ void __launch_bounds__(32) calls(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  through(s, p, p.first, threadIdx.x, 65);                                      // one call
  through(s, p, p.second, threadIdx.x, 66);                                     // the other call
}
extern "C" __global__ void __launch_bounds__(32) races(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  through(s, p, threadIdx.x == 3 ? p.first : 0, threadIdx.x, 9);                // the third thread's
  through(s, p, threadIdx.x == 5 ? p.first : 0, threadIdx.x, 9);                // the fifth thread's
}

__device__ __forceinline__ float read(Storage& s, int i) {
  return s.x[i];                                                                // a read
}
__device__ __forceinline__ float read_each(Storage& s, int step) {
  return read(s, step * threadIdx.x);                                           // each of them
}
extern "C" __global__ void __launch_bounds__(32) conflicts(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  s.x[threadIdx.x] = s.x[threadIdx.x + 32] = 0.0f;
  __syncwarp();
  float sum = read_each(s, 1);                                                  // next to each other
  sum += read_each(s, 2);                                                       // every other one
  p.out[threadIdx.x] = sum;
}
"""


def arguments(first=0, second=0):
    """Parameters of the kernels of `CALLS`: what its calls do, 0 being nothing."""
    numbers = {"first": first, "second": second, "by": 40}
    return {"out": emulated.aligned(32, np.float32)} | {name: np.int32(value) for name, value in numbers.items()}


def call_error(entry, **calls):
    with pytest.raises(EmulatorError) as raised:
        emulated.run(CALLS, arguments(**calls), entry=entry, shared=256, mode="checked")
    return raised.value


def chain(*marks):
    """The lines of `CALLS` that have these comments, as an error names them."""
    return " from ".join(f"kernel.cu:{line_of(CALLS, f'// {mark}')}" for mark in marks)


@pytest.mark.parametrize(("which", "call"), [("first", "one call"), ("second", "the other call")])
@pytest.mark.parametrize(
    ("what", "mark", "kind"),
    [
        (1, "a global write", "out_of_bounds"),
        (2, "a shared write", "out_of_bounds"),
        (3, "a trap", "trap"),
        (4, "a shift", "undefined"),
        (5, "a copy", "out_of_bounds"),
        (6, "a matrix load", "out_of_bounds"),
        (7, "a product", "deadlock"),
        (8, "a barrier", "deadlock"),
        (9, "a block barrier", "barrier_divergence"),
        (10, "a shuffle", "deadlock"),
        (11, "an atomic", "out_of_bounds"),
    ],
)
def test_the_lines_that_a_place_is_inlined_in(what, mark, kind, which, call):
    error = call_error("calls", **{which: what})
    assert error.kind == kind
    assert str(error.sites[0]) == chain(mark, "between", call)
    assert error.sites[0].callers[1] == Site("kernel.cu", line_of(CALLS, f"// {call}"))
    assert f" at {error.sites[0]}" in str(error)


def test_both_sides_of_a_race_have_their_own_lines():
    error = call_error("races", first=2)
    assert (error.kind, error.threads) == ("shared_race", (3, 5))
    here, there = (chain("a shared write", "between", f"the {x} thread's") for x in ("fifth", "third"))
    assert f"write of shared+36 (x[9]) by thread 5 at {here} is not" in str(error)
    assert f"after the write by thread 3 at {there}:" in str(error)


def test_conflicts_are_counted_by_the_lines_that_call():
    report = emulated.run(CALLS, arguments(), entry="conflicts", shared=256, mode="counted")
    reads = {str(c.site): (c.instructions, c.wavefronts) for c in report.conflicts if c.site.callers}
    calls = {mark: chain("a read", "each of them", mark) for mark in ("next to each other", "every other one")}
    assert reads == {calls["next to each other"]: (1, 0), calls["every other one"]: (1, 1)}


# ---- members of shared memory
PLAN = """
struct Row { short id; float data[8]; };                    // two bytes of padding after id
struct Half { unsigned short bits; };
struct Counts { static const int kMany = 3; int first, second; };
struct Wide : Counts { double third; };
typedef const float Column[3];
struct Storage {
  Row rows[2][3];                                           // 0 to 215
  char tag;                                                 // then up to 223 padding
  union alignas(16) { Row key; Half value[40]; };           // 224 to 303
  union { float scale; struct { short low, high; } parts; } word;
  Half halves[2];
  Column grid[2];
  Wide wide;
  float* pointer;
};
"""
PLAN_BYTES = 368
MEMBERS = {
    0: "rows[0][0].id",
    1: "rows[0][0].id+1",
    2: "",
    4: "rows[0][0].data[0]",
    35: "rows[0][0].data[7]+3",
    36: "rows[0][1].id",
    107: "rows[0][2].data[7]+3",
    108: "rows[1][0].id",
    215: "rows[1][2].data[7]+3",
    216: "tag",
    217: "",
    224: "key.id or value[0]",
    226: "value[1]",
    228: "key.data[0] or value[2]",
    259: "key.data[7]+3 or value[17]+1",
    260: "value[18]",
    303: "value[39]+1",
    304: "word.scale or word.parts.low",
    306: "word.scale+2 or word.parts.high",
    308: "halves[0]",
    310: "halves[1]",
    312: "grid[0][0]",
    320: "grid[0][2]",
    324: "grid[1][0]",
    335: "grid[1][2]+3",
    336: "wide.first",
    340: "wide.second",
    344: "wide.third",
    352: "pointer",
    359: "pointer+7",
    360: "",
    367: "",
    368: "",
    10**6: "",
}

READS = f"""
#include "platform.cuh"
struct Params {{ float* out; int at; }};
{PLAN}
static_assert(sizeof(Storage) == {PLAN_BYTES}, "");
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {{
  volatile unsigned char* bytes = reinterpret_cast<volatile unsigned char*>(&shared_storage<Storage>());
  p.out[threadIdx.x] = bytes[p.at];                         // read
}}
"""


def read_error(at, shared):
    with pytest.raises(EmulatorError) as raised:
        emulated.run(READS, {"out": np.zeros(32, np.float32), "at": np.int32(at)}, shared=shared, mode="checked")
    return raised.value


@pytest.mark.parametrize("at", [at for at in MEMBERS if at < 400])
def test_an_error_names_the_member(at):
    error = read_error(at, shared=400)
    place = f"shared+{at} ({MEMBERS[at]})" if MEMBERS[at] else f"shared+{at}"
    assert error.kind == "uninitialised"
    assert f"read of {place} at kernel.cu:{line_of(READS, '// read')}, which" in str(error)


def test_members_beyond_the_memory_of_the_block():
    error = read_error(324, shared=320)
    assert error.kind == "out_of_bounds"
    assert "shared+324 (grid[1][0])" in str(error)


# ---- compilers, and forms of debug information
PLAIN = (
    PLAN
    + """
extern "C" void* memory;
void* memory;
template <class T> inline __attribute__((always_inline)) T& shared_storage() { return *(T*)memory; }
inline __attribute__((always_inline)) void put(int i, short value) {
  shared_storage<Storage>().rows[0][i].id = value;          // write
}
extern "C" __attribute__((visibility("default"))) void enter(int i) {
  put(i, 3);                                                // once
  put(i + 1, 5);                                            // twice
}
"""
)
WRITE, ONCE, TWICE = (line_of(PLAIN, f"// {mark}") for mark in ("write", "once", "twice"))
LINES = {f"plain.cu:{i}" for i in range(len(PLAIN.splitlines()) + 1)}
CHAINS = {f"plain.cu:{WRITE} from plain.cu:{line}" for line in (ONCE, TWICE)}


def plain(*flags, plan=PLAIN):
    """A library with debug information as `flags` ask for it."""
    text = f'#line 1 "plain.cu"\n{plan}'
    linker = os.environ.get("CXX", "")
    return compile_shared(text, "plain", flags=("-O1", "-fPIC", *flags), freestanding=True, depends=linker)


def named(library):
    """All places that instructions of a library have."""
    return {str(find_site(library, offset)) for offset in range(0x4000)}


@pytest.mark.parametrize(
    "flags",
    [
        ("-gdwarf-4",),
        ("-g2", "-gdwarf-4", "-fno-var-tracking"),
        ("-gdwarf-3",),
        pytest.param(
            ("-gdwarf-4", "-Wa,-gdwarf-3"),
            marks=pytest.mark.skipif(find_compiler().is_clang, reason="clang has its own assembler"),
        ),
    ],
    ids=" ".join,
)
def test_forms_that_are_read(flags):
    library = plain(*flags)
    assert named(library) >= CHAINS
    assert {at: member(library, at) for at in MEMBERS} == MEMBERS


@pytest.mark.parametrize(
    ("compiled", "linked"),
    [("-g0", ""), ("-gdwarf-5", ""), ("-gdwarf-4", "-gz"), ("-gdwarf-4", "-s")],
    ids=["none", "version 5", "compressed", "stripped"],
)
def test_forms_that_are_not_read_leave_places_without_names(compiled, linked, monkeypatch):
    if linked == "-gz" and find_compiler().is_clang:
        pytest.skip("ziglang's linker does not compress")
    monkeypatch.setenv("CXX", " ".join((*find_compiler().command, linked)))
    library = plain(compiled)
    assert member(library, 4) == ""
    assert named(library) <= {"?:0", *LINES}


def test_lines_without_entries():
    """-g1 has lines and inlined calls, and no types."""
    library = plain("-gdwarf-4", "-g1")
    assert named(library) >= CHAINS
    assert member(library, 0) == ""


def test_calls_that_the_compiler_made_one_are_left_out(monkeypatch):
    calls = [(0, 9, depth, Site("kernel.cu", line)) for depth, line in enumerate((8, 0, 5))]
    monkeypatch.setattr(lines, "_tables", lambda library: ([(0, Site("kernel.cu", 3))], calls))
    for at in (0, 8):
        assert str(find_site(Path(), at)) == "kernel.cu:3 from kernel.cu:5 from kernel.cu:8"
    assert str(find_site(Path(), 9)) == "kernel.cu:3"


def test_two_plans_of_one_library_have_no_names():
    other = 'struct Other { int x; };\nextern "C" int other() { return shared_storage<Other>().x; }\n'
    assert member(plain("-gdwarf-4"), 4) == "rows[0][0].data[0]"
    assert member(plain("-gdwarf-4", plan=PLAIN + other), 4) == ""


def test_a_plan_of_one_number():
    before, after = PLAIN.index("struct Storage"), PLAIN.index('extern "C" void* memory')
    single = PLAIN[:before] + "struct Storage { Half count; };\n" + PLAIN[after:]
    library = plain("-gdwarf-4", plan=single.replace("rows[0][i].id", "count.bits"))
    assert [member(library, at) for at in range(3)] == ["count", "count+1", ""]
    library = plain("-gdwarf-4", plan=single.replace("Half count", "float count").replace("rows[0][i].id", "count"))
    assert [member(library, at) for at in (0, 3, 4)] == ["count", "count+3", ""]


def test_a_library_without_a_plan_has_no_names():
    assert member(plain("-gdwarf-4", plan='struct Storage { int x; };\nextern "C" Storage s;\nStorage s;\n'), 0) == ""


def test_what_is_no_elf_file_has_no_names(tmp_path):
    path = tmp_path / "library.dylib"
    for content in (b"", b"\xcf\xfa\xed\xfe" + bytes(100), bytes(10), b"\x7fELF\x02\x01" + b"\xff" * 100):
        path.write_bytes(content)
        forget()
        assert (find_site(path, 0), member(path, 0)) == (Site("?", 0), "")


# ---- by the standard: what no compiler here writes too


@pytest.mark.parametrize(
    ("number", "unsigned", "signed"),
    [  # DWARF 4, figures 22 and 23
        (2, b"\x02", b"\x02"),
        (127, b"\x7f", b"\xff\x00"),
        (128, b"\x80\x01", b"\x80\x01"),
        (129, b"\x81\x01", b"\x81\x01"),
        (12857, b"\xb9\x64", b"\xb9\xe4\x00"),
        (-2, None, b"\x7e"),
        (-127, None, b"\x81\x7f"),
        (-128, None, b"\x80\x7f"),
        (-129, None, b"\xff\x7e"),
    ],
)
def test_numbers_of_the_standard(number, unsigned, signed):
    for content, has_sign in ((unsigned, False), (signed, True)):
        if content is not None:
            reader = dwarf.Reader(content + b"\xff")
            assert (reader.leb128(has_sign), reader.at) == (number, len(content))


@pytest.mark.parametrize(
    ("form", "content", "value"),
    [
        (0x01, b"\1\2\3\4\5\6\7\x88", 0x8807060504030201),  # an address
        (0x05, b"\1\x82", 0x8201),
        (0x06, b"\1\2\3\x84", 0x84030201),
        (0x07, b"\1\2\3\4\5\6\7\x88", 0x8807060504030201),
        (0x0B, b"\x81", 0x81),
        (0x0C, b"\1", 1),
        (0x0D, b"\x80\x7f", -128),
        (0x0F, b"\x80\x7f", 127 << 7),
        (0x08, b"name\0", "name"),
        (0x0E, b"\2\0\0\0", "strings"),
        (0x10, b"\1\2\0\0", 0x201),  # of another unit
        (0x11, b"\x81", 0x1081),  # of this unit, which begins at 0x1000
        (0x12, b"\1\x82", 0x9201),
        (0x13, b"\1\0\1\0", 0x11001),
        (0x14, b"\1\0\0\0\1\0\0\0", 0x100001001),
        (0x15, b"\x80\1", 0x1080),
        (0x16, b"\x0b\7", 7),  # the form comes first
        (0x17, b"\1\2\0\0", 0x201),
        (0x19, b"", 1),
        (0x20, b"\1\0\0\0\0\0\0\0", 1),
        (0x0A, b"\2--", None),  # expressions: a length, and as many bytes
        (0x03, b"\2\0--", None),
        (0x04, b"\2\0\0\0--", None),
        (0x09, b"\x82\0--", None),
        (0x18, b"\2--", None),
    ],
)
def test_values_of_every_form(form, content, value):
    reader = dwarf.Reader(content + b"\xff")
    assert (dwarf._value(reader, form, 0x1000, b"\0\0strings\0"), reader.at) == (value, len(content))


def test_ranges_of_the_standard(tmp_path):
    (tmp_path / "empty").touch()
    library, last = dwarf.Library(tmp_path / "empty"), 2**64 - 1
    pairs = [(7, 8), (0, 0), (1, 2), (3, 3), (last, 0x500), (1, 9), (last, 0x70), (0, 1), (0, 0), (7, 8)]
    library._sections[".debug_ranges"] = struct.pack("<20Q", *sum(pairs, ()))
    entry = dwarf.Entry(dwarf.INLINED, {dwarf.RANGES: 32})
    assert list(library.ranges(entry, 0x9000)) == [(0x9001, 0x9002), (0x501, 0x509), (0x70, 0x71)]
    for is_size, end in ((False, 0x30), (True, 0x50)):
        entry = dwarf.Entry(dwarf.INLINED, {dwarf.LOW: 0x20, dwarf.HIGH: 0x30}, high_is_size=is_size)
        assert list(library.ranges(entry, 0x9000)) == [(0x20, end)]
    assert list(library.ranges(dwarf.Entry(dwarf.INLINED, {}), 0x9000)) == []


def line_unit(version, program):
    """A unit of .debug_line whose instructions are 2 bytes long; a special opcode is 13 + 12 steps + lines + 3."""
    head = b"\2" + (b"\1" if version >= 4 else b"") + b"\1" + struct.pack("<bBB", -3, 12, 13)
    head += bytes([0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1]) + b"part\0other\0\0"
    head += b"a.cuh\0\1\0\0" + b"k.cu\0\0\0\0" + b"x/b.h\0\2\0\0" + b"\0"
    body = struct.pack("<HI", version, len(head)) + head + program
    return struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_a_line_program(version, monkeypatch):
    def begin(address):
        return b"\0\x09\2" + struct.pack("<Q", address)

    copy, end = b"\1", b"\0\1\1"
    steps = begin(0x1000) + copy
    steps += b"\3\x09" + bytes([13 + 12 * 1 + 5])  # nine lines on; then a step and two lines
    steps += b"\4\2" + b"\2\xc8\1" + b"\3\x7b" + copy  # the second file, 200 steps, five lines back
    steps += b"\x08" + bytes([13 + 3])  # the steps of opcode 255
    steps += b"\x09\x2c\1" + b"\4\3" + b"\5\x81\1\6\7\x0a\x0b\x0c\5" + b"\0\2\4\1" + copy  # 300 bytes
    steps += b"\2\x0a" + end
    last = 0x1002 + 400 + 40 + 300 + 20
    first = begin(last) + copy + b"\2\1" + end  # begins where the other ends
    sections = {".debug_line": line_unit(version, first) + line_unit(version, steps)}
    library = type("Library", (), {"section": lambda _, name: sections[name], "entries": {}})
    monkeypatch.setattr(dwarf, "Library", lambda path: library())
    places = {
        0xFFF: "?:0",
        0x1000: "part/a.cuh:1",
        0x1001: "part/a.cuh:1",
        0x1002: "part/a.cuh:12",
        0x1002 + 399: "part/a.cuh:12",
        0x1002 + 400: "k.cu:7",
        0x1002 + 439: "k.cu:7",
        0x1002 + 440: "k.cu:7",
        0x1002 + 739: "k.cu:7",
        0x1002 + 740: "x/b.h:7",
        last - 1: "x/b.h:7",
        last: "part/a.cuh:1",
        last + 1: "part/a.cuh:1",
        last + 2: "?:0",
    }
    forget()
    try:
        found = {at: str(find_site(Path("made"), at)) for at in places}
    finally:
        forget()
    assert found == (places if version < 5 else dict.fromkeys(places, "?:0"))


def forget():
    lines._tables.cache_clear()
    layout._storage.cache_clear()


def sections(elf):
    """Where the header of each debug section stands, where its content, and its length."""
    (headers,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    found = {}
    for at in range(headers, headers + count * size, size):
        name, _, _, _, offset, length = struct.unpack_from("<IIQQQQ", elf, at)
        (strings,) = struct.unpack_from("<Q", elf, headers + names * size + 24)
        text = elf[strings + name : elf.index(b"\0", strings + name)].decode()
        if text.startswith(".debug_"):
            found[text] = at, offset, length
    return found


@pytest.fixture(scope="module")
def intact():
    """A library, and where it has an instruction of the helper."""
    library = plain("-gdwarf-4")
    return library.read_bytes(), next(at for at in range(0x4000) if str(find_site(library, at)) in CHAINS)


@given(data=st.data())
def test_damaged_debug_information_never_raises(data, intact, tmp_path_factory):
    whole, instruction = intact
    damaged = bytearray(whole)
    name, (header, offset, length) = data.draw(st.sampled_from(sorted(sections(whole).items())))
    if data.draw(st.booleans()):
        struct.pack_into("<Q", damaged, header + 32, data.draw(st.integers(0, length)))
    for at in data.draw(st.lists(st.integers(0, length - 1), max_size=8)):
        damaged[offset + at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.so"
    path.write_bytes(damaged)
    forget()
    site = find_site(path, instruction)
    if name != ".debug_line":
        assert str(site).startswith(f"plain.cu:{WRITE}")
    for at in (0, 4, 224, 10**6):
        assert isinstance(member(path, at), str)


def test_an_error_is_told_without_debug_information(monkeypatch):
    """By a compiler that writes none that can be read: what is left is "?" and the offset."""
    module = emulator.EmulatorModule(emulated.host_source(READS), mode="checked")
    monkeypatch.setattr(module, "path", plain("-g0"))
    out = np.zeros(32, np.float32)
    buffers = [emulator.Buffer("out", out.ctypes.data, out.nbytes, True)]
    params = emulated.pack({"out": out, "at": np.int32(4)})
    with pytest.raises(EmulatorError, match=r"read of shared\+4 at \?:0, which the block has never written"):
        module.launch("kernel", (1,), (32,), params, 400, buffers)
