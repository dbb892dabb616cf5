// Key j exists when j < k_lengths of its batch element.
#pragma once
#include "cpu/mask.h"
#include "cpu/place.h"

struct KeyLengthsParams {
  Layout k_lengths;
};

class KeyLengths : public Unbounded {
 public:
  template <class Place>
  KeyLengths(const KeyLengthsParams& params, const Place& place)
      : length_(place.number(params.k_lengths, place.arrays.k_lengths, INT64_MAX)) {}

  int64_t key_end(int64_t) const { return length_; }
  int64_t query_begin(int64_t key) const { return key < length_ ? 0 : INT64_MAX; }

 private:
  int64_t length_;
};
