// The sink of a head.
#pragma once
#include "cpu/convert.h"
#include "cpu/place.h"
#include "cpu/sink.h"

struct SinksParams {
  Layout sinks, q_lengths;
  int64_t wide;
};

class Sinks {
 public:
  template <class Place>
  explicit Sinks(const Place& place) {
    const SinksParams& params = place.shape.components;
    const char* data = place.begin(params.sinks, place.arrays.sinks);
    used_ = data;
    if (!used_) return;
    sink_ = load_number(params.wide ? kFloat32 : place.shape.dtype, data);
    queries_ = place.number(params.q_lengths, place.arrays.q_lengths, place.shape.seqlen_q);
  }

  bool used() const { return used_; }
  double logit(int64_t query) const { return query < queries_ ? sink_ : -kInfinity<double>; }

 private:
  bool used_;
  double sink_ = 0;
  int64_t queries_ = 0;  // that exist
};
