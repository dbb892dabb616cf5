"""What is read of a header: the layout that a compiler gives its structs, which test_kernels.py asks a compiler for."""

import numpy as np
import pytest
from cases import made
from hypothesis import given
from hypothesis import strategies as st

from cupy_flash._src import source
from cupy_flash._src.components import ARRAYS, COMPONENTS
from cupy_flash._src.components.block_mask import LISTS
from cupy_flash._src.params import BATCH_DIMS, layout
from cupy_flash._src.structs import structs_of

NUMBERS = {"int": "i4", "uint32_t": "u4", "int64_t": "i8", "float": "f4", "double": "f8"}


def offsets(dtype):
    return {name: offset for name, (_, offset, *_) in dtype.fields.items()}


def test_members_follow_one_another_as_they_are_aligned():
    header = """
    // struct Comment { int x; };
constexpr int kMany = 3;  // batch
struct Divisor {
  int value;
  uint32_t multiplier, shift;  // and; what;

  __device__ operator int() const { return value; }
};

struct Tensor {
  const float* data;
  void *other, *next;
  int64_t strides[kMany], last;
  Divisor by[2];
  double factor;
  int tail;
};
"""
    divisor, tensor = structs_of(header).values()
    assert offsets(divisor) == {"value": 0, "multiplier": 4, "shift": 8} and divisor.itemsize == 12
    assert [divisor[name].str[1:] for name in divisor.names] == ["i4", "u4", "u4"]
    assert offsets(tensor) == {
        "data": 0, "other": 8, "next": 16, "strides": 24, "last": 48, "by": 56, "factor": 80, "tail": 88,
    }  # fmt: skip
    assert tensor.itemsize == 96 and tensor["strides"].shape == (3,) and tensor["by"].subdtype == (divisor, (2,))


@given(st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=8), st.integers(1, 5))
def test_numbers_are_aligned_to_their_sizes(types, count):
    """By the rule itself: the next multiple of its size, and the whole a multiple of the largest."""
    members = "".join(f"  {name} x{i}[{count}];\n" for i, name in enumerate(types))
    found = structs_of(f"struct Some {{\n{members}}};\n")["Some"]
    end, sizes = 0, [np.dtype(NUMBERS[name]).itemsize for name in types]
    for i, size in enumerate(sizes):
        begin = -(-end // size) * size
        assert found.fields[f"x{i}"] == (np.dtype((NUMBERS[types[i]], (count,))), begin)
        end = begin + count * size
    assert found.itemsize == -(-end // max(sizes)) * max(sizes)


def test_base_classes_come_first_and_empty_ones_take_no_room():
    header = """
struct Nothing {};
struct Pair {
  double a;
  float b;
};
struct One {
  int c;
};
struct All : Pair, Nothing, One {};
struct Whole {
  All all;
  int d;
};
struct More : All {
  int d;
};
"""
    found = structs_of(header)
    assert found["Nothing"].itemsize == 0
    assert offsets(found["All"]) == {"Pair": 0, "One": 16} and found["All"].itemsize == 24
    assert offsets(found["Whole"]) == {"all": 0, "d": 24} and found["Whole"].itemsize == 32
    assert "More" not in found  # a compiler lays d into what All leaves over


@pytest.mark.parametrize("member", [
    "bool flag;", "unsigned int n;", "Unknown x;", "Other y[2];", "half z;", "int b = 3;", "int& b;", "int b[2][3];",
    "alignas(16) int b;", "int (*f)(int);", "decltype(1) b;",
])  # fmt: skip
def test_what_has_members_of_other_kinds_is_left_out(member):
    some = f"struct Some {{\n  int a;\n  {member}\n}};\n"
    assert structs_of(some + "struct Next {\n  Some s;\n};\nstruct Last : Some {};\n") == {}


def test_the_kernels_structs_are_found():
    assert layout("Shape")["batch"].shape == (BATCH_DIMS,) and layout("Tensor")["data"].kind == "u"
    found = {name for name in structs_of(source.flatten("params.cuh")) if name.endswith("Params")}
    assert found == {
        *("ForwardParams", "BackwardParams", "TermParams", "MergeParams", "SealParams", "SummaryParams"),
    }


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda x: x.keyword)
def test_a_component_fills_in_the_struct_of_its_header(component):
    """The numbers by their names; a tensor has that of an option which is an array."""
    for value in component.examples:
        found = made(component, value)
        header = found.text or f'#include "attention/{component.header}.cuh"\n'
        struct = structs_of(source.flatten("header.cuh", virtual={"header.cuh": header}))[component.struct]
        tensors = {name for name in struct.names if struct[name] == layout("Tensor")}
        assert set(struct.names) - tensors - set(LISTS) <= set(found.params())
        assert tensors <= set(ARRAYS)
        assert component.keyword in tensors or component.lacks is None
