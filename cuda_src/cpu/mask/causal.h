// Query i sees key j when j <= i + q_offset.
#pragma once
#include "cpu/mask.h"

struct CausalParams {
  int64_t used;
};

class Causal : public Unbounded {
 public:
  // Not in effect it leaves every query so far on that it sees all keys.
  template <class Shape>
  Causal(const CausalParams& params, const Shape& shape) : offset_(params.used ? shape.q_offset : shape.seqlen_k) {}

  int64_t key_end(int64_t query) const { return query + offset_ + 1; }
  int64_t query_begin(int64_t key) const { return key - offset_; }

 private:
  int64_t offset_;
};
