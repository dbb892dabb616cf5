// Key j exists when j >= k_starts of its batch element.
#pragma once
#include "cpu/mask.h"
#include "cpu/place.h"

struct KeyStartsParams {
  Layout k_starts;
};

class KeyStarts : public Unbounded {
 public:
  template <class Place>
  KeyStarts(const KeyStartsParams& params, const Place& place)
      : start_(place.number(params.k_starts, place.arrays.k_starts, int64_t(0))) {}

  int64_t key_begin(int64_t) const { return start_; }
  int64_t query_end(int64_t key) const { return key < start_ ? 0 : INT64_MAX; }

 private:
  int64_t start_;
};
