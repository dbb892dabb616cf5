// Where each batch element's first query stands among its keys, where only the call tells: as it is given, or so that
// the last query that exists stands at the last such key.
#pragma once
#include "cpu/place.h"

struct OffsetsParams {
  Layout q_offset, k_lengths, q_lengths;
};

class Offsets {
 public:
  template <class Place>
  static void move(const OffsetsParams& params, Place& place) {
    const auto& arrays = place.arrays;
    const Layout &given = params.q_offset, &keys = params.k_lengths, &queries = params.q_lengths;
    if (!given.heads && !keys.heads && !queries.heads) return;
    const int64_t last_key = place.number(keys, arrays.k_lengths, place.shape.seqlen_k);
    const int64_t last_query = place.number(queries, arrays.q_lengths, place.shape.seqlen_q);
    const int64_t offset = place.number(given, arrays.q_offset, last_key - last_query);
    place.q_offset = clamp(offset, -kFarthest, kFarthest);
    place.knows_offset = arrays.q_offset || arrays.k_lengths || arrays.q_lengths;
  }
};
