// Arithmetic of positions and sizes.
#pragma once
#include <stdint.h>

constexpr int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

constexpr int64_t ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }
constexpr int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Positions from `begin` on that lie before `end`.
struct Span {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

// Size of n's parts when it is cut into the fewest of at most `most`: all but the last are equal, rounded up to units.
inline int64_t even_part(int64_t n, int64_t most, int64_t unit) {
  return n <= 0 ? unit : round_up(ceil_div(n, ceil_div(n, most)), unit);
}
