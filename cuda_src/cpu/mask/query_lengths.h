// Query i exists when i < q_lengths of its batch element: the others see nothing.
#pragma once
#include "cpu/mask.h"
#include "cpu/place.h"

struct QueryLengthsParams {
  Layout q_lengths;
};

class QueryLengths : public Unbounded {
 public:
  template <class Place>
  QueryLengths(const QueryLengthsParams& params, const Place& place)
      : length_(place.number(params.q_lengths, place.arrays.q_lengths, INT64_MAX)) {}

  int64_t key_begin(int64_t query) const { return query < length_ ? 0 : INT64_MAX; }
  int64_t query_end(int64_t) const { return length_; }

 private:
  int64_t length_;
};
