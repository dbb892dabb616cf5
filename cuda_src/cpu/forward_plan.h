// How the forward is cut into items of work, and what passes between them.
#pragma once
#include "cpu/scratch.h"
#include "cpu/score.h"

constexpr int64_t kQueryBlock = 192;
constexpr int64_t kKeyTile = 120;  // whole register tiles
// m follows the largest score only when that has passed it by so much: p stays under 2^8, and rescaling is rare.
constexpr double kSlack = 8;

// How the forward is cut into items of work: by the shape alone, so that the number of threads changes no bit.
struct ForwardPlan {
  int64_t packed;         // heads of a group side by side in a block, so that few queries share their keys
  int64_t rows;           // queries of a head in a block
  int64_t units, blocks;  // of packed heads, and of a head's queries
  int64_t chunk, chunks;  // keys of an item, and items that share a block

  ForwardPlan(const Shape& s, int64_t panel) {
    const int64_t queries = s.seqlen_q - s.first_query;
    packed = s.group() * queries <= kQueryBlock ? s.group() : 1;
    rows = packed > 1 ? queries : even_part(queries, kQueryBlock, panel);
    units = s.heads_q / packed;
    blocks = ceil_div(queries, rows);
    // An item loads and merges its queries once more: its keys are many times theirs.
    const int64_t few = ceil_div(32, units * blocks), longest = 4 * columns() > 240 ? 4 * columns() : 240;
    chunk = even_part(s.seqlen_k, ceil_div(s.seqlen_k, clamp(ceil_div(s.seqlen_k, longest), 1, few)), kRows);
    chunks = ceil_div(s.seqlen_k, chunk);
  }

  int64_t columns() const { return packed * rows; }
  int64_t items() const { return units * blocks * chunks; }
};

// What the keys seen so far leave of a block of queries, in panels.
template <class T>
struct ForwardState {
  T *o, *m, *l;  // [panels][width][panel], [panels][panel] twice

  ForwardState(Scratch& scratch, int64_t columns, int64_t width) {
    o = scratch.take<T>(columns * width);
    m = scratch.take<T>(columns);
    l = scratch.take<T>(columns);
  }
};

// Natural, of a row with maximum m in log2 units and sum l.
template <class T>
T log_sum_exp(T m, T l) {
  return l == 0 ? -kInfinity<T> : T((double(m) + __builtin_log2(double(l))) * kLn2);
}
