// Query i sees key j when j <= i + q_offset.
#pragma once
#include "cpu/mask.h"

struct CausalParams {
  int64_t used;
};

class Causal : public Unbounded {
 public:
  // Not in effect it leaves every query so far on that it sees all keys.
  template <class Place>
  Causal(const CausalParams& params, const Place& place)
      : offset_(params.used && place.knows_offset ? place.q_offset : place.shape.seqlen_k) {}

  int64_t key_end(int64_t query) const { return query + offset_ + 1; }
  int64_t query_begin(int64_t key) const { return key - offset_; }

 private:
  int64_t offset_;
};
