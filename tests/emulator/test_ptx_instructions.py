"""Each arithmetic instruction of the PTX table against NumPy and Python integers, one entry point apiece."""

import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest

from cupy_flash import emulator
from cupy_flash._src.emulator.ptx import translate

N = 512
NUMPY = {
    **{f"{kind}{bits}": f"u{bits // 8}" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    "f16": "f2",
    "f32": "f4",
    "f64": "f8",
    "pred": "u4",
}


class Case(NamedTuple):
    """`instruction result, operands...` and a function of NumPy arrays (of Python integers for integers)."""

    instruction: str
    result: str
    operands: tuple[str, ...]
    oracle: Callable
    rtol: float = 0.0


def case(text: str, oracle: Callable, rtol: float = 0.0) -> Case:
    """`case("mul.wide.u32 u64 = u32 u32", ...)`."""
    instruction, result, _, *operands = text.split()
    return Case(instruction, result, tuple(operands), oracle, rtol)


# ---- inputs


def inputs_of(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(zlib.crc32(case.instruction.encode()))
    return [values(type_, rng) for type_ in case.operands]


def values(type_: str, rng: np.random.Generator) -> np.ndarray:
    """Edge cases and random bits in random order."""
    dtype = np.dtype(NUMPY[type_])
    if type_ == "pred":
        return rng.integers(0, 2, N).astype(dtype)
    if dtype.kind == "f":
        info = np.finfo(dtype)
        edges = [
            0,
            info.smallest_subnormal,
            info.tiny,
            0.5,
            1,
            1.5,
            2.5,
            127.5,
            3e4,
            info.max,
            np.inf,
            np.nan,
        ]
        edges = np.array([*edges, *(-edge for edge in edges)], dtype)
        drawn = (rng.standard_normal(N) * 2.0 ** rng.integers(-4, 34, N)).clip(info.min, info.max).astype(dtype)
    else:
        info = np.iinfo(dtype)
        edges = [0, 1, 2, 5, 7, 31, 32, 33, 63, 64, 100, info.max, info.max - 1, info.min, info.min + 1]
        edges = np.array(edges, dtype)
        drawn = rng.integers(info.min, info.max, N, dtype, endpoint=True)
    with np.errstate(over="ignore"):
        return np.where(rng.random(N) < 0.5, rng.choice(edges, N), drawn).astype(dtype)


# ---- oracles on Python integers (object arrays), wrapped to the result's width afterwards


def bits(type_: str) -> int:
    return 1 if type_ == "pred" else int(type_[1:])


def wrapped(value: np.ndarray, type_: str) -> np.ndarray:
    unsigned = np.array([int(v) % 2 ** bits(type_) for v in value], dtype=f"u{bits(type_) // 8}")
    return unsigned.view(NUMPY[type_])


def each(function: Callable) -> Callable:
    return np.frompyfunc(function, function.__code__.co_argcount, 1)


def quotient(width: int) -> Callable:
    return each(lambda a, b: (abs(a) // abs(b)) * (-1 if (a < 0) != (b < 0) else 1) if b else 2**width - 1)


remainder = each(lambda a, b: (abs(a) % abs(b)) * (-1 if a < 0 else 1) if b else a)


def shift_left(width: int) -> Callable:
    return each(lambda a, n: a << n if n < width else 0)


def shift_right(width: int) -> Callable:
    return each(lambda a, n: a >> min(n, width))


def funnel(left: bool, clamp: bool) -> Callable:
    def shift(a: int, b: int, n: int) -> int:
        n = min(n, 32) if clamp else n % 32
        pair = b << 32 | a
        return pair << n >> 32 if left else pair >> n

    return each(shift)


def extract(width: int, signed: bool) -> Callable:
    def bit_field(a: int, position: int, length: int) -> int:
        position, length = position % 256, length % 256
        if not length:
            return 0
        field = (a >> position) & (2**length - 1) if signed else (a % 2**width >> position) & (2**length - 1)
        return field - 2**length if signed and field >> (length - 1) else field

    return each(bit_field)


def insert(width: int) -> Callable:
    def bit_field(a: int, b: int, position: int, length: int) -> int:
        position, length = position % 256, length % 256
        mask = (2**length - 1 << position) % 2**width
        return b & ~mask | a << position & mask

    return each(bit_field)


def permute(a: int, b: int, selector: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    picked = [selector >> 4 * i & 15 for i in range(4)]
    chosen = [source[p & 7] if p < 8 else 255 * (source[p & 7] >> 7) for p in picked]
    return int.from_bytes(bytes(chosen), "little")


def find_bit(width: int) -> Callable:
    def highest(a: int) -> int:
        length = (~a if a < 0 else a).bit_length()
        return length - 1 if length else 2**32 - 1

    return each(highest)


def mul_hi(width: int) -> Callable:
    return each(lambda a, b: a * b >> width)


INTEGER = [
    case("add.s32 s32 = s32 s32", lambda a, b: a + b),
    case("add.s16 s16 = s16 s16", lambda a, b: a + b),
    case("add.u64 u64 = u64 u64", lambda a, b: a + b),
    case("sub.s64 s64 = s64 s64", lambda a, b: a - b),
    case("mul.lo.s32 s32 = s32 s32", lambda a, b: a * b),
    case("mul.lo.u16 u16 = u16 u16", lambda a, b: a * b),
    case("mul.lo.u64 u64 = u64 u64", lambda a, b: a * b),
    case("mul.hi.s32 s32 = s32 s32", mul_hi(32)),
    case("mul.hi.u32 u32 = u32 u32", mul_hi(32)),
    case("mul.hi.s64 s64 = s64 s64", mul_hi(64)),
    case("mul.hi.u64 u64 = u64 u64", mul_hi(64)),
    case("mul.wide.u16 u32 = u16 u16", lambda a, b: a * b),
    case("mul.wide.s16 s32 = s16 s16", lambda a, b: a * b),
    case("mul.wide.s32 s64 = s32 s32", lambda a, b: a * b),
    case("mul.wide.u32 u64 = u32 u32", lambda a, b: a * b),
    case("mad.lo.s32 s32 = s32 s32 s32", lambda a, b, c: a * b + c),
    case("mad.hi.u32 u32 = u32 u32 u32", lambda a, b, c: mul_hi(32)(a, b) + c),
    case("mad.wide.s32 s64 = s32 s32 s64", lambda a, b, c: a * b + c),
    case("mad.hi.s32 s32 = s32 s32 s32", lambda a, b, c: mul_hi(32)(a, b) + c),
    case("div.s32 s32 = s32 s32", quotient(32)),
    case("div.u64 u64 = u64 u64", quotient(64)),
    case("rem.s32 s32 = s32 s32", remainder),
    case("rem.u32 u32 = u32 u32", remainder),
    case("neg.s32 s32 = s32", lambda a: -a),
    case("abs.s64 s64 = s64", each(lambda a: abs(a))),
    case("min.s32 s32 = s32 s32", each(lambda a, b: min(a, b))),
    case("min.u32 u32 = u32 u32", each(lambda a, b: min(a, b))),
    case("max.u64 u64 = u64 u64", each(lambda a, b: max(a, b))),
    case("max.s64 s64 = s64 s64", each(lambda a, b: max(a, b))),
    case("sad.s32 s32 = s32 s32 s32", each(lambda a, b, c: c + abs(a - b))),
    case("sad.u32 u32 = u32 u32 u32", each(lambda a, b, c: c + abs(a - b))),
    case("div.s16 s16 = s16 s16", quotient(16)),
    case("rem.s64 s64 = s64 s64", remainder),
    case("and.b32 b32 = b32 b32", lambda a, b: a & b),
    case("or.b64 b64 = b64 b64", lambda a, b: a | b),
    case("xor.b16 b16 = b16 b16", lambda a, b: a ^ b),
    case("not.b64 b64 = b64", each(lambda a: ~a)),
    case("cnot.b32 b32 = b32", each(lambda a: int(a == 0))),
    case("shl.b16 b16 = b16 u32", shift_left(16)),
    case("shl.b32 b32 = b32 u32", shift_left(32)),
    case("shl.b64 b64 = b64 u32", shift_left(64)),
    case("shr.u16 u16 = u16 u32", shift_right(16)),
    case("shr.u32 u32 = u32 u32", shift_right(32)),
    case("shr.s32 s32 = s32 u32", shift_right(32)),
    case("shr.s64 s64 = s64 u32", shift_right(64)),
    case("shf.l.wrap.b32 b32 = b32 b32 u32", funnel(True, False)),
    case("shf.l.clamp.b32 b32 = b32 b32 u32", funnel(True, True)),
    case("shf.r.wrap.b32 b32 = b32 b32 u32", funnel(False, False)),
    case("shf.r.clamp.b32 b32 = b32 b32 u32", funnel(False, True)),
    case("popc.b32 u32 = b32", each(lambda a: a.bit_count())),
    case("popc.b64 u32 = b64", each(lambda a: a.bit_count())),
    case("clz.b32 u32 = b32", each(lambda a: 32 - a.bit_length())),
    case("clz.b64 u32 = b64", each(lambda a: 64 - a.bit_length())),
    case("brev.b32 b32 = b32", each(lambda a: int(f"{a:032b}"[::-1], 2))),
    case("brev.b64 b64 = b64", each(lambda a: int(f"{a:064b}"[::-1], 2))),
    case("bfind.u32 u32 = u32", find_bit(32)),
    case("bfind.s32 u32 = s32", find_bit(32)),
    case("bfind.s64 u32 = s64", find_bit(64)),
    case("bfe.u32 u32 = u32 u32 u32", extract(32, False)),
    case("bfe.s32 s32 = s32 u32 u32", extract(32, True)),
    case("bfe.u64 u64 = u64 u32 u32", extract(64, False)),
    case("bfe.s64 s64 = s64 u32 u32", extract(64, True)),
    case("bfi.b32 b32 = b32 b32 u32 u32", insert(32)),
    case("bfi.b64 b64 = b64 b64 u32 u32", insert(64)),
    case("prmt.b32 b32 = b32 b32 b32", each(permute)),
    case("selp.b32 b32 = b32 b32 pred", each(lambda a, b, p: a if p else b)),
    case("slct.u64.s32 u64 = u64 u64 s32", each(lambda a, b, c: a if c >= 0 else b)),
    case("setp.lt.s32 pred = s32 s32", lambda a, b: a < b),
    case("setp.ge.u64 pred = u64 u64", lambda a, b: a >= b),
    case("setp.lo.u32 pred = u32 u32", lambda a, b: a < b),
    case("setp.hs.u32 pred = u32 u32", lambda a, b: a >= b),
    case("setp.hi.u64 pred = u64 u64", lambda a, b: a > b),
    case("setp.ls.u16 pred = u16 u16", lambda a, b: a <= b),
    case("setp.ne.b16 pred = b16 b16", lambda a, b: a != b),
    case("setp.eq.and.s32 pred = s32 s32 pred", lambda a, b, p: (a == b) & (p == 1)),
    case("setp.gt.or.s32 pred = s32 s32 pred", lambda a, b, p: (a > b) | (p == 1)),
    case("setp.le.xor.u32 pred = u32 u32 pred", lambda a, b, p: (a <= b) ^ (p == 1)),
    case("and.pred pred = pred pred", lambda a, b: a & b),
    case("xor.pred pred = pred pred", lambda a, b: a ^ b),
    case("not.pred pred = pred", lambda a: 1 - a),
    case("cvt.u16.u32 u16 = u32", lambda a: a),
    case("cvt.s64.s32 s64 = s32", lambda a: a),
    case("cvt.u64.s32 u64 = s32", lambda a: a),
    case("cvt.s64.u32 s64 = u32", lambda a: a),
    case("cvt.s32.s8 s32 = s8", lambda a: a),
    case("cvt.sat.u8.s32 u8 = s32", each(lambda a: min(max(a, 0), 255))),
    case("cvt.sat.s16.s64 s16 = s64", each(lambda a: min(max(a, -32768), 32767))),
    case("cvt.sat.s32.u64 s32 = u64", each(lambda a: min(a, 2**31 - 1))),
    case("cvt.sat.u64.s64 u64 = s64", each(lambda a: max(a, 0))),
]


# ---- floating point


def flush(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def ftz(function: Callable) -> Callable:
    return lambda *arguments: flush(function(*(flush(x) for x in arguments)))


def saturate(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, np.minimum(x, 1), x.dtype.type(0))


def exact_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    result = a * b + c
    for i in np.flatnonzero(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        if exact and abs(exact) < np.finfo(np.float64).max:
            result[i] = float(exact)
    return result


def minimum(a: np.ndarray, b: np.ndarray, sign: int = 1) -> np.ndarray:
    """-0 below +0; a NaN loses."""
    smaller = np.where(sign * a < sign * b, a, b)
    zeros = np.where(np.signbit(a) == (sign > 0), a, b)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.where(a == b, zeros, smaller)))


def maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return minimum(a, b, -1)


def unordered(compare: Callable) -> Callable:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


def ordered(compare: Callable) -> Callable:
    return lambda a, b: compare(a, b) & ~np.isnan(a) & ~np.isnan(b)


def to_integer(rounding: Callable, type_: str) -> Callable:
    """Rounds, then clamps to the type's range; NaN is 0, or the top bit alone if either type has 64 bits."""
    info = np.iinfo(NUMPY[type_])

    def convert(x: np.ndarray) -> np.ndarray:
        rounded = rounding(x)
        nan = 1 << (info.bits - 1) if 64 in (info.bits, 8 * x.itemsize) else 0
        clamped = [
            nan if np.isnan(v) else info.max if v > info.max else info.min if v < info.min else int(v)
            for v in rounded.tolist()
        ]
        return np.array(clamped, object)

    return convert


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
FLOAT = [
    case("add.f32 f32 = f32 f32", np.add),
    case("add.ftz.f32 f32 = f32 f32", ftz(np.add)),
    case("add.rn.f64 f64 = f64 f64", np.add),
    case("sub.f64 f64 = f64 f64", np.subtract),
    case("mul.f32 f32 = f32 f32", np.multiply),
    case("mul.ftz.f32 f32 = f32 f32", ftz(np.multiply)),
    case("mul.sat.f32 f32 = f32 f32", lambda a, b: saturate(a * b)),
    case("fma.rn.f32 f32 = f32 f32 f32", exact_fma),
    case("fma.rn.f64 f64 = f64 f64 f64", exact_fma),
    case("div.rn.f32 f32 = f32 f32", np.divide),
    case("div.full.ftz.f32 f32 = f32 f32", ftz(np.divide), 2.0**-22),
    case("div.rn.f64 f64 = f64 f64", np.divide),
    case("neg.f32 f32 = f32", np.negative),
    case("abs.f64 f64 = f64", np.abs),
    case("abs.ftz.f32 f32 = f32", ftz(np.abs)),
    case("copysign.f32 f32 = f32 f32", lambda a, b: np.copysign(b, a)),
    case("min.f32 f32 = f32 f32", minimum),
    case("max.f32 f32 = f32 f32", maximum),
    case("max.f64 f64 = f64 f64", maximum),
    case("min.NaN.f32 f32 = f32 f32", lambda a, b: np.where(np.isnan(a + b), a + b, minimum(a, b))),
    case("max.ftz.f32 f32 = f32 f32", ftz(maximum)),
    case("min.f64 f64 = f64 f64", minimum),
    case("max.NaN.f32 f32 = f32 f32", lambda a, b: np.where(np.isnan(a + b), a + b, maximum(a, b))),
    case("ex2.approx.ftz.f32 f32 = f32", ftz(np.exp2), 2.0**-21),
    case("lg2.approx.ftz.f32 f32 = f32", ftz(np.log2), 2.0**-21),
    case("tanh.approx.f32 f32 = f32", np.tanh, 2.0**-10),
    case("sin.approx.f32 f32 = f32", lambda a: np.sin(a.astype("f8")).astype("f4"), 2.0**-22),
    case("cos.approx.f32 f32 = f32", lambda a: np.cos(a.astype("f8")).astype("f4"), 2.0**-22),
    case("sqrt.rn.f32 f32 = f32", np.sqrt),
    case("sqrt.rn.f64 f64 = f64", np.sqrt),
    case("rcp.rn.f64 f64 = f64", np.reciprocal),
    case("rcp.approx.ftz.f32 f32 = f32", ftz(np.reciprocal), 2.0**-22),
    case("rcp.approx.ftz.f64 f64 = f64", ftz(np.reciprocal), 2.0**-19),
    case("rsqrt.approx.f32 f32 = f32", lambda a: 1 / np.sqrt(a), 2.0**-21),
    case("rsqrt.approx.ftz.f64 f64 = f64", ftz(lambda a: 1 / np.sqrt(a)), 2.0**-19),
    case("testp.finite.f32 pred = f32", np.isfinite),
    case("testp.infinite.f64 pred = f64", np.isinf),
    case("testp.number.f64 pred = f64", lambda a: ~np.isnan(a)),
    case("testp.notanumber.f32 pred = f32", np.isnan),
    case("selp.f64 f64 = f64 f64 pred", lambda a, b, p: np.where(p, a, b)),
    case("slct.f32.f32 f32 = f32 f32 f32", lambda a, b, c: np.where(c >= 0, a, b)),
    case("set.gt.u32.f32 u32 = f32 f32", lambda a, b: np.where(a > b, 2**32 - 1, 0).astype("u4")),
    case("set.lt.f32.f32 f32 = f32 f32", lambda a, b: (a < b).astype("f4")),
    *(case(f"setp.{name}.f32 pred = f32 f32", ordered(compare)) for name, compare in COMPARISONS.items()),
    *(case(f"setp.{name}u.f64 pred = f64 f64", unordered(compare)) for name, compare in COMPARISONS.items()),
    case("setp.num.f32 pred = f32 f32", lambda a, b: ~np.isnan(a) & ~np.isnan(b)),
    case("setp.nan.f64 pred = f64 f64", lambda a, b: np.isnan(a) | np.isnan(b)),
    case("setp.eq.ftz.f32 pred = f32 f32", lambda a, b: ordered(np.equal)(flush(a), flush(b))),
    case("cvt.rni.s32.f32 s32 = f32", to_integer(np.rint, "s32")),
    case("cvt.rzi.u32.f32 u32 = f32", to_integer(np.trunc, "u32")),
    case("cvt.rmi.s64.f64 s64 = f64", to_integer(np.floor, "s64")),
    case("cvt.rpi.u64.f32 u64 = f32", to_integer(np.ceil, "u64")),
    case("cvt.rzi.s16.f64 s16 = f64", to_integer(np.trunc, "s16")),
    case("cvt.rzi.u16.f32 u16 = f32", to_integer(np.trunc, "u16")),
    case("cvt.rni.u32.f64 u32 = f64", to_integer(np.rint, "u32")),
    case("cvt.rmi.s32.f64 s32 = f64", to_integer(np.floor, "s32")),
    case("cvt.rzi.u64.f64 u64 = f64", to_integer(np.trunc, "u64")),
    case("cvt.rn.f32.s32 f32 = s32", lambda a: a.astype("i4").astype("f4")),
    case("cvt.rn.f32.u64 f32 = u64", lambda a: a.astype("u8").astype("f4")),
    case("cvt.rn.f64.s64 f64 = s64", lambda a: a.astype("i8").astype("f8")),
    case("cvt.rn.f32.f64 f32 = f64", lambda a: a.astype("f4")),
    case("cvt.rn.ftz.f32.f64 f32 = f64", lambda a: flush(a.astype("f4"))),
    case("cvt.f64.f32 f64 = f32", lambda a: a.astype("f8")),
    case("cvt.ftz.f64.f32 f64 = f32", lambda a: flush(a).astype("f8")),
    case("cvt.rni.f32.f32 f32 = f32", np.rint),
    case("cvt.rpi.f64.f64 f64 = f64", np.ceil),
    case("cvt.rmi.f32.f32 f32 = f32", np.floor),
    case("cvt.rzi.f64.f64 f64 = f64", np.trunc),
    case("cvt.rn.f16.f32 f16 = f32", lambda a: a.astype("f2")),
    case("cvt.sat.f32.f32 f32 = f32", saturate),
    case("cvt.f32.f16 f32 = f16", lambda a: a.astype("f4")),
    case("cvt.f64.f16 f64 = f16", lambda a: a.astype("f8")),
]
CASES = INTEGER + FLOAT

# ---- one entry point for each case: operands and result lie in 8-byte slots of four arrays

_ENTRY = """
.visible .entry {name}(.param .align 8 .b8 {name}_param_0[40])
{{
  .reg .b32 %t, %flag; .reg .b64 %slot, %base, %address;
  .reg .pred %p<5>; .reg .b16 %h<5>; .reg .b32 %r<5>; .reg .b64 %d<5>;
  mov.u32 %t, %tid.x;
  mul.wide.u32 %slot, %t, 8;
{body}
  ret;
}}
"""


def register(type_: str, index: int) -> str:
    return {1: "%p", 8: "%h", 16: "%h", 32: "%r", 64: "%d"}[bits(type_)] + str(index)


def slot(name: str, index: int) -> str:
    return f"ld.param.u64 %base, [{name}_param_0+{8 * index}]; add.s64 %address, %base, %slot;"


def entry(name: str, case: Case) -> str:
    lines = []
    for index, type_ in enumerate(case.operands, 1):
        target = register(type_, index)
        lines.append(slot(name, index))
        if type_ == "pred":
            lines.append(f"ld.global.u32 %flag, [%address]; setp.ne.u32 {target}, %flag, 0;")
        else:
            lines.append(f"ld.global.{type_.replace('f16', 'b16')} {target}, [%address];")
    operands = [register(type_, index) for index, type_ in enumerate((case.result, *case.operands))]
    lines += [f"{case.instruction} {', '.join(operands)};", slot(name, 0)]
    if case.result == "pred":
        lines.append(f"selp.u32 %flag, 1, 0, {operands[0]}; st.global.u32 [%address], %flag;")
    else:
        lines.append(f"st.global.{case.result} [%address], {operands[0]};")
    return _ENTRY.format(name=name, body="\n".join(f"  {line}" for line in lines))


@pytest.fixture(scope="module")
def translated() -> str:
    """All cases in one module: one compilation."""
    entries = "".join(entry(f"case_{i}", case) for i, case in enumerate(CASES))
    return translate(f".version 8.5\n.target sm_80\n.address_size 64\n{entries}")


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.instruction for case in CASES])
def test_instruction(index, translated):
    case = CASES[index]
    inputs = inputs_of(case)
    slots = np.zeros((5, N), np.uint64)
    for row, x in zip(slots[1:], inputs, strict=False):
        row[:] = x.view(f"u{x.itemsize}")
    params = (slots.ctypes.data + slots.strides[0] * np.arange(5, dtype=np.uint64)).tobytes()
    buffer = emulator.Buffer("slots", slots.ctypes.data, slots.nbytes, True)
    emulator.launch(translated, f"case_{index}", (1,), (N,), params, 0, [buffer])

    dtype = np.dtype(NUMPY[case.result])
    actual = slots[0].astype(f"u{dtype.itemsize}").view(dtype)
    python_integers = [x.astype(object) if x.dtype.kind != "f" and case.result[0] != "f" else x for x in inputs]
    with np.errstate(all="ignore"):
        expected = case.oracle(*python_integers)
    if expected.dtype == object and dtype.kind != "f":
        expected = wrapped(expected, "b32" if case.result == "pred" else case.result)
    np.testing.assert_allclose(actual, expected.astype(dtype), rtol=case.rtol, atol=0)
    if dtype.kind == "f":  # -0 is not 0
        number = ~np.isnan(actual)
        np.testing.assert_array_equal(np.signbit(actual)[number], np.signbit(expected)[number])


def test_lop3_of_every_truth_table():
    tables = (0x80, 0x96, 0xE8, 0xCA, 0x01, 0xFE, 0x3C)
    name = "lop3"
    loads = [f"{slot(name, i)} ld.global.b32 %r{i}, [%address];" for i in (1, 2, 3)]
    row = f"mul.wide.u32 %slot, %t, {4 * len(tables)}; {slot(name, 0)}"
    stores = [
        f"lop3.b32 %r4, %r1, %r2, %r3, {table}; st.global.b32 [%address+{4 * i}], %r4;"
        for i, table in enumerate(tables)
    ]
    text = _ENTRY.format(name=name, body="\n".join([*loads, row, *stores]))
    a, b, c = np.random.default_rng(5).integers(0, 2**32, (3, N), np.uint64)
    result = np.zeros((N, len(tables)), np.uint32)
    arrays = {"d": result, "a": a, "b": b, "c": c, "unused": a}
    params = np.array([x.ctypes.data for x in arrays.values()], np.uint64).tobytes()
    buffers = [emulator.Buffer(k, x.ctypes.data, x.nbytes, k == "d") for k, x in arrays.items()]
    emulator.launch(translate(f".target sm_80\n{text}"), name, (1,), (N,), params, 0, buffers)
    for column, table in zip(result.T, tables, strict=True):
        expected = np.zeros(N, np.uint64)
        for bit in range(32):
            index = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
            expected |= (np.uint64(table) >> index & 1) << np.uint64(bit)
        np.testing.assert_array_equal(column, expected)


def test_votes_of_a_warp_that_says_yes_no_or_both():
    modes = ("all", "any", "uni")
    body = [slot("votes", 1), "ld.global.u32 %flag, [%address]; setp.ne.u32 %p1, %flag, 0;"]
    body += [f"vote.sync.{mode}.pred %p2, %p1, -1; selp.u32 %r{i}, 1, 0, %p2;" for i, mode in enumerate(modes, 1)]
    body += ["vote.sync.ballot.b32 %r4, !%p1, -1; mul.wide.u32 %slot, %t, 16;", slot("votes", 0)]
    body += ["st.global.v4.u32 [%address], {%r1, %r2, %r3, %r4};"]
    yes = np.zeros((3, 32), np.uint64)
    yes[1], yes[2, ::3] = 1, 1
    votes = np.zeros((3, 32, 4), np.uint32)
    arrays = {"votes": votes, "yes": yes}
    params = np.resize([x.ctypes.data for x in arrays.values()], 5).astype(np.uint64).tobytes()
    buffers = [emulator.Buffer(k, x.ctypes.data, x.nbytes, k == "votes") for k, x in arrays.items()]
    text = translate(f".target sm_80\n{_ENTRY.format(name='votes', body=chr(10).join(body))}")
    emulator.launch(text, "votes", (1,), (96,), params, 0, buffers)
    some = sum(1 << lane for lane in range(32) if lane % 3)
    expected = np.array([[0, 0, 1, 2**32 - 1], [1, 1, 1, 0], [0, 1, 0, some]], np.uint32)
    np.testing.assert_array_equal(votes, np.broadcast_to(expected[:, None], votes.shape))
