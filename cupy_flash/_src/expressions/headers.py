"""CUDA headers of traced functions: a struct of what they capture, and the type that kernels are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cupy_flash._src.expressions.cxx import Code, Value
from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT
from cupy_flash._src.expressions.symbols import type_of


def params(struct: str, arguments: Sequence[Value], arithmetic: str, more: str = "") -> str:
    """The struct of captured arguments; arrays by their addresses, sizes and strides, which count elements."""
    number = "double" if arithmetic == "float64" else "float"
    types = {BOOL: "int", INT: "int64_t", FLOAT: number}
    arrays, fields = [], []
    for argument in arguments:
        if (ndim := argument.ndim) is None:
            type = "int" if argument.is_small else types[type_of(argument.dtype)]
            fields.append(f"  {type} {argument.name};")
        else:
            of = f"{struct}_{argument.name}"
            stride = "int" if argument.is_near else "int64_t"
            members = f"  void* data;\n  int sizes[{ndim or 1}];\n  {stride} strides[{ndim or 1}];\n"
            if type_of(argument.dtype) == FLOAT:
                members += "  void* gradient;\n  void* exponent;\n"
            else:
                members += "  void* summary;\n  int summary_axis, chunks;\n"
            arrays.append(f"struct {of} {{\n{members}}};\n")
            fields.append(f"  {of} {argument.name};")
    body = "".join(f"{field}\n" for field in fields) + more
    return "".join(arrays) + (f"struct {struct} {{\n{body}}};\n" if body else f"struct {struct} {{}};\n")


_TYPES = """using Int = int;
  using Wide = int64_t;
  using Bool = bool;
"""


class Site(NamedTuple):
    """A place where an array enters a score: the array, the derivative's name, and where the element is."""

    array: str
    factor: str
    indices: Sequence[str]


INCLUDES = "".join(f'#include "attention/{name}.cuh"\n' for name in ("block_lists", "expression", "place"))


def score(code: Code, clamps_key: bool, sites: Sequence[Site]) -> str:
    """A step of the score (attention/score.cuh), of bodies for it, its derivative, and those of captured arrays."""
    (forward, (result,)), (slope, (factor,)), (gather, _) = code.bodies
    add = []
    for n, site in enumerate(sites):
        array = f"params.{site.array}"
        position = f"np::position({', '.join([f'{array}.sizes', *site.indices])})"
        add.append(f"sites.template add<{n}>({array}, {position}, dy * {site.factor});")
    finish = [f"sites.template finish<{n}>(params.{site.array});" for n, site in enumerate(sites)]
    key = _key(clamps_key, "shape")
    return f"""template <class Accumulator>
struct ScoreMod {{
  {_TYPES}  using Float = Accumulator;
  const ScoreModParams& params;
  const Shape& shape;
  int batch, head;
  Accumulator natural;

  __device__ ScoreMod(const ScoreModParams& params, const Place& place, Accumulator unit)
      : params(params), shape(place.shape), batch(place.shape.first_batch + place.batch), head(place.head),
        natural(unit * static_cast<Accumulator>(kLn2)) {{}}

  __device__ Accumulator unit() const {{ return static_cast<Accumulator>(kLog2E); }}

  template <class Columns>
  struct Row {{
    const ScoreModParams& params;
    const Shape& shape;
    Columns columns;
    Accumulator natural;
    Int b, h, i;
{_members(code)}
    __device__ Row(const ScoreMod& step, int query, int head, const Columns& columns)
        : params(step.params), shape(step.shape), columns(columns), natural(step.natural), b(step.batch),
          h(step.head + head), i(min(query, step.shape.seqlen_q - 1)) {{
{_row(code)}    }}

    __device__ Float forward(Float x, int column) const {{
      const Float s = x * natural;
      const Int j = {key};
{_lines(forward)}      return {result};
    }}

    __device__ Float backward(Float dy, Float x, int column) const {{
      const Float s = x * natural;
      const Int j = {key};
{_lines(slope)}      return dy * {factor};
    }}

    template <class Sites>
    __device__ void gather(Sites& sites, Float dy, Float x, int column) const {{
      const Float s = x * natural;
      const Int j = {key};
{_lines([*gather, *add])}    }}
  }};

  static constexpr int kSites = {len(sites)};

  template <class Sites>
  __device__ static void finish(Sites& sites, const ScoreModParams& params) {{
{_lines(finish)}  }}
}};
template <>
constexpr bool kMakesAnything<ScoreMod> = true;
"""


BLOCKS = "  BlockLists of_queries, of_keys;\n  BlockTable table;\n"


def mask(code: Code, ranges: Code, clamps_key: bool) -> str:
    """An elementwise part of a mask (attention/mask.cuh), and for its block lists its share of a block."""
    ((body, (result,)),) = code.bodies
    ((of_ranges, (share,)),) = ranges.bodies
    return f"""struct MaskMod {{
  {_TYPES}  using Float = float;
  static constexpr bool kCutsBelow = false, kCutsAbove = false, kElementwise = true;
  const MaskModParams& params;
  const Shape& shape;
  int batch, head;

  __device__ MaskMod(const MaskModParams& params, const Place& place)
      : params(params), shape(place.shape), batch(place.shape.first_batch + place.batch), head(place.head) {{}}

  struct Row {{
    Int b, h, i;
{_members(code)}
    Row() = default;
    __device__ Row(const MaskMod& mask, QueryRow row)
        : b(mask.batch), h(mask.head + row.head), i(min(row.query, mask.shape.seqlen_q - 1)) {{
      [[maybe_unused]] const auto& params = mask.params;
{_row(code)}    }}

    __device__ bool shows(const MaskModParams& params, Int j) const {{
{_lines(body)}      return {result};
    }}
  }};

  template <class Flags>
  struct Shown {{
    const MaskMod& mask;
    typename Flags::Columns columns;
    bool is_whole;
    Row rows[Flags::kRows];

    template <class RowOf>
    __device__ Shown(const MaskMod& mask, const typename Flags::Columns& columns, const RowOf& row, bool is_whole)
        : mask(mask), columns(columns), is_whole(is_whole) {{
#pragma unroll
      for (int i = 0; i < Flags::kRows; ++i) rows[i] = Row(mask, row(i));
    }}

    __device__ bool at(int row, int column) const {{
      return rows[row].shows(mask.params, {_key(clamps_key, "mask.shape")});
    }}
    __device__ bool any() const {{ return true; }}
    __device__ bool all() const {{ return is_whole; }}
  }};

  __device__ const BlockLists& block_lists(bool by_keys) const {{
    return by_keys ? params.of_keys : params.of_queries;
  }}
  __device__ BlockList block_list(bool by_keys, int block_head, int row) const {{
    return {{block_lists(by_keys), batch - shape.first_batch, block_head, row}};
  }}
  __device__ const BlockTable& block_table() const {{ return params.table; }}

  // 0: of these queries none sees any of these keys, 2: each sees all, 1: it is not known (attention/range.cuh).
  template <class Kinds, class Int>
  __device__ int share(Int b, Int h, Int i, Int j) const {{
    using Wide = Int;
    using Float = typename Kinds::Float;
    using Bool = typename Kinds::Bool;
{_lines([*ranges.row, *of_ranges])}      const Bool shown = {share};
    return static_cast<int>(shown.low + shown.high);
  }}
}};
template <>
constexpr bool kIsListed<MaskMod> = true;
"""


def _members(code: Code) -> str:
    return "".join(f"    {type} {name};\n" for type, name in code.members)


def _row(code: Code) -> str:
    members = {name for _, name in code.members}
    statements = ((line.removeprefix("const auto "), line) for line in code.row)
    return _lines([bare if bare.partition(" ")[0] in members else line for bare, line in statements])


def _lines(statements: Sequence[str]) -> str:
    return "".join(f"      {line}\n" for line in statements)


def _key(clamps: bool, shape: str) -> str:
    """A lane's key; where arrays are looked up by it one that exists."""
    return f"min(columns(column), {shape}.seqlen_k - 1)" if clamps else "columns(column)"


def cpu_score(struct: str, code: Code) -> str:
    """A step of the score for tiles on a CPU (cpu/score/score_mod.h), of bodies for it and its derivative."""
    (forward, (result,)), (slope, (factor,)) = code.bodies
    return f"""#include "cpu/mods.h"
{struct}
template <bool kKeeps, class I>
static inline ALWAYS_INLINE auto score(const ScoreModParams params, Int b, Int h, I i, Number natural) {{
{_indented(code.row, 2)}  return [=](auto j, Number* x, Number* kept) ALWAYS_INLINE {{
    const FloatLanes s = load(x) * natural;
{_indented(forward, 4)}    store(x, np::lanes({result}));
    if constexpr (kKeeps) {{
{_indented([line for line in slope if line not in forward], 6)}      store(kept, np::lanes({factor}));
    }}
  }};
}}
SCORE_FUNCTIONS(ScoreModParams)
"""


def cpu_mask(struct: str, code: Code) -> str:
    """An elementwise part of a mask for tiles on a CPU (cpu/mask/mask_mod.h)."""
    ((body, (result,)),) = code.bodies
    return f"""#include "cpu/mods.h"
{struct}
template <class I>
static inline ALWAYS_INLINE auto shows(const MaskModParams params, Int b, Int h, I i) {{
{_indented(code.row, 2)}  return [=](auto j) ALWAYS_INLINE {{
{_indented(body, 4)}    return np::lanes({result});
  }};
}}
MASK_FUNCTIONS(MaskModParams)
"""


def _indented(statements: Sequence[str], by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in statements)
