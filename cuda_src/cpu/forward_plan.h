// How the forward is cut into items of work, and what passes between them.
#pragma once
#include "cpu/scratch.h"
#include "cpu/shape.h"

constexpr int64_t kQueryBlock = 192;
constexpr int64_t kKeyTile = 120;  // whole register tiles
// m follows the largest score only when that has passed it by so much in log2 units: rescaling is rare.
constexpr int64_t kSlack = 8;

// By the shape alone, so that neither the number of threads nor what another batch element's lengths are changes a bit.
// A column of a block is a query of one of its heads.
struct ForwardPlan {
  int64_t group;          // query heads of a key head
  int64_t packed;         // of them side by side in a block, so that few queries share their keys
  int64_t rows;           // queries of a head in a block
  int64_t units, blocks;  // of packed heads, and of a head's queries
  int64_t chunk, chunks;  // keys of an item, and items that share a block
  int64_t first_query, queries, seqlen_k;
  const Order& order;
  int64_t headroom = 0;   // p is 2^(s - m - headroom)

  ForwardPlan(const Shape& s, int64_t panel)
      : first_query(s.first_query), queries(s.queries), seqlen_k(s.seqlen_k), order(s.order) {
    group = s.group();
    packed = s.heads_alike && group * queries <= kQueryBlock ? group : 1;
    rows = packed > 1 ? queries : even_part(queries, kQueryBlock, panel);
    units = s.heads_q / packed;
    blocks = ceil_div(queries, rows);
    int64_t most = 0;  // keys of a block, as far as they are known to be fewer in every head
    const KeyMask mask(anywhere(s));
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t seen = keys(mask, block).size();
      most = seen > most ? seen : most;
    }
    // An item loads and merges its queries once more: it wants many times as many keys.
    const int64_t few = ceil_div(32, units * blocks), wanted = 4 * columns() > 240 ? 4 * columns() : 240;
    chunk = even_part(most, ceil_div(most, clamp(ceil_div(most, wanted), 1, few)), kAccumulators);
    chunks = ceil_div(most, chunk);
    // No p exceeds 1 / seqlen_k, so no sum of p v exceeds the largest v, and none overflows that standard attention
    // keeps finite. Sums of float16, in float32, are far from that.
    if (s.dtype != kFloat16) for (headroom = kSlack; s.seqlen_k > int64_t(1) << (headroom - kSlack);) ++headroom;
  }

  int64_t columns() const { return packed * rows; }  // the most of a block
  int64_t columns(int64_t block) const {
    return packed * clamp(queries - (blocks - 1 - block) * rows, 0, rows);
  }
  int64_t items() const { return units * blocks * chunks; }
  // Of those that share a block: which heads, and which of their blocks. All of a unit of `order` come to one block
  // before the next.
  struct Work {
    int64_t unit, block;
  };
  Work work(int64_t number) const {
    const int64_t parts = group / packed, member = number % order.members, rest = number / order.members;
    const int64_t block = rest % blocks, part = rest / blocks % parts, shared = rest / blocks / parts;
    return {order.heads[shared * order.members + member] * parts + part, block};
  }
  int64_t key_head(int64_t unit) const { return unit * packed / group; }
  int64_t head(int64_t unit, int64_t column) const { return unit * packed + column / rows; }

  // The last blocks come first: when causal they see the most keys. A row may lie beyond the last query.
  int64_t row(int64_t block, int64_t column) const { return first_query + (blocks - 1 - block) * rows + column % rows; }
  int64_t last_row(int64_t block) const { return clamp(row(block, rows - 1), 0, first_query + queries - 1); }

  // What queries of a block see of keys of a head with that mask lies among these.
  Span keys(const KeyMask& mask, int64_t block, Span among) const {
    return mask.keys(row(block, 0), last_row(block), among);
  }
  Span keys(const KeyMask& mask, int64_t block) const { return keys(mask, block, {0, seqlen_k}); }
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

// Natural, of a row with reference m, unit * m in log2 units, and sum l of p.
template <class T>
T log_sum_exp(T m, T unit, T l, int64_t headroom) {
  return l == 0 ? -kInfinity<T> : T((double(m) * unit + (__builtin_log2(double(l)) + double(headroom))) * kLn2);
}
