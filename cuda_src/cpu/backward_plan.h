// How the backward is cut, by the shape alone: into blocks of keys of each key head, and blocks of queries. Few heads
// get shorter blocks, so that threads have something to share; halving a block costs 5 to 10%.
#pragma once
#include "cpu/forward_plan.h"

constexpr int kBackwardVectors = 2;  // of a panel of queries
constexpr int64_t kBackwardTile = 60, kKeyBlock = 8 * kBackwardTile;  // whole register tiles

struct BackwardPlan {
  int64_t keys, key_blocks, queries, query_blocks, heads;

  BackwardPlan(const Shape& s, int64_t panel) {
    heads = s.heads_k;
    const int64_t most = clamp(ceil_div(s.seqlen_k * heads, 8), kKeyBlock / 2, kKeyBlock);
    keys = even_part(s.seqlen_k, most, kTileRows<kBackwardVectors>);
    key_blocks = ceil_div(s.seqlen_k, keys);
    queries = even_part(s.queries, kQueryBlock, panel), query_blocks = ceil_div(s.queries, queries);
  }
};
