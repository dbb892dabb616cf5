// Which keys a query sees, as in attention/mask.cuh, for the vectors of a CPU.
#pragma once
#include "cpu/sizes.h"
#include "cpu/vector.h"

// What a part of a mask says where it has no bound.
struct Unbounded {
  int64_t key_begin(int64_t) const { return 0; }
  int64_t key_end(int64_t) const { return INT64_MAX; }
  int64_t query_begin(int64_t) const { return 0; }
  int64_t query_end(int64_t) const { return INT64_MAX; }
};

// What all of some parts let a query see. A part is a class of cpu/mask, made of its parameters and the call's shape,
// with those of the functions of Unbounded that it has a bound for:
//   key_begin(query), key_end(query)      the query sees the keys from the one on that lie before the other
//   query_begin(key), query_end(key)      the key is seen by the queries from the one on that lie before the other
// None of them falls as its argument rises, and both lines say the same. All parts are compiled in; one that is not in
// effect, of parameters that are all 0, hides nothing.
template <class... Parts>
class MaskOf : Parts... {
 public:
  template <class Shape>
  explicit MaskOf(const Shape& shape)
      : Parts(shape.components, shape)..., seqlen_q_(shape.seqlen_q), seqlen_k_(shape.seqlen_k) {}

  // Queries from this one on see only keys from that one on.
  int64_t key_begin(int64_t query) const {
    int64_t begin = 0;
    ((begin = clamp(Parts::key_begin(query), begin, seqlen_k_)), ...);
    return begin;
  }

  // Queries up to this one see only keys before that one.
  int64_t key_end(int64_t query) const {
    int64_t end = seqlen_k_;
    ((end = clamp(Parts::key_end(query), 0, end)), ...);
    return end;
  }

  // Keys from this one on are seen only by queries from that one on: by none behind the last key, where padding may be.
  int64_t query_begin(int64_t key) const {
    int64_t begin = key < seqlen_k_ ? 0 : seqlen_q_;
    ((begin = clamp(Parts::query_begin(key), begin, seqlen_q_)), ...);
    return begin;
  }

  // Keys up to this one are seen only by queries before that one.
  int64_t query_end(int64_t key) const {
    int64_t end = seqlen_q_;
    ((end = clamp(Parts::query_end(key), 0, end)), ...);
    return end;
  }

  bool sees(int64_t query, int64_t key) const { return key_begin(query) <= key && key < key_end(query); }

  // For the queries in the lanes.
  template <class T>
  Mask<T> lanes_see(Mask<T> queries, int64_t key) const {
    return (queries >= Integer<T>(query_begin(key))) & (queries < Integer<T>(query_end(key)));
  }

  // Whether every query from `low` to `high` sees all keys in [first, first + keys), and they are no padding.
  bool covers(int64_t low, int64_t high, int64_t first, int64_t keys) const {
    return key_begin(high) <= first && first + keys <= key_end(low);
  }

 private:
  int64_t seqlen_q_, seqlen_k_;
};
