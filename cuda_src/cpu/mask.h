// Which keys a query sees, as in attention/mask.cuh, for the vectors of a CPU.
#pragma once
#include "cpu/sizes.h"
#include "cpu/vector.h"

// What all of some parts let a query see. A part is a class of cpu/mask, made of its parameters and the call's shape,
//   int64_t key_end(int64_t query) const;      the query sees no key from this one on
//   int64_t query_begin(int64_t key) const;    no query before this one sees the key
// neither of which falls as its argument rises; query >= query_begin(key) exactly where key < key_end(query). All are
// compiled in; one that is not in effect, of parameters that are all 0, hides nothing.
template <class... Parts>
class MaskOf : Parts... {
 public:
  template <class Shape>
  explicit MaskOf(const Shape& shape)
      : Parts(shape.components, shape)..., seqlen_q_(shape.seqlen_q), seqlen_k_(shape.seqlen_k) {}

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

  bool sees(int64_t query, int64_t key) const { return key < key_end(query); }

  // For the queries in the lanes.
  template <class T>
  Mask<T> lanes_see(Mask<T> queries, int64_t key) const {
    return queries >= Integer<T>(query_begin(key));
  }

  // Whether every query from this one on sees all keys in [first, first + keys), and they are no padding.
  bool covers(int64_t query, int64_t first, int64_t keys) const { return first + keys <= key_end(query); }

 private:
  int64_t seqlen_q_, seqlen_k_;
};
