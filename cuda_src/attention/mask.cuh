// Which keys a query sees: those that exist and that no part hides, a compile-time list of types. Blocks that the mask
// rules out are never loaded, and blocks that it leaves whole are never tested element by element.
//
// A part gives each query an interval of keys, and each key an interval of queries; both say the same:
//
//   static constexpr bool kCutsBelow, kCutsAbove   the sides on which it hides keys
//   key_begin(query), key_end(query)               of kCutsBelow, of kCutsAbove: the keys that the query sees
//   query_begin(key), query_end(key)               of kCutsAbove, of kCutsBelow: the queries that see the key
//
// No result falls as its argument rises. The file that includes this has included the parts, and `Components`, what
// they are told.
#pragma once
#include "attention/place.cuh"

struct Interval {
  int begin, end;
};

template <class... Parts>
struct MaskOf : Parts... {
  static constexpr bool kCutsBelow = (false || ... || Parts::kCutsBelow);
  int seqlen_q, seqlen_k;

  __device__ MaskOf(const Components& params, const Place& place)
      : Parts(params, place)..., seqlen_q(place.seqlen_q), seqlen_k(place.seqlen_k) {}

  // Of a query, in the head that is so many after place.head.
  struct Row {
    const MaskOf& mask;
    int query;

    __device__ bool sees(int key) const {
      return ((key < mask.seqlen_k) && ... && mask.template shows<Parts>(query, key));
    }
  };

  __device__ Row row(int query, int head) const { return {*this, query}; }

  // Where the keys lie that queries from `first` to `last` see.
  __device__ Interval keys(int first, int last) const {
    Interval seen{0, seqlen_k};
    (narrow_keys<Parts>(seen, first, last), ...);
    return ordered(seen);
  }

  // Where the queries lie that see keys from `first` to `last`.
  __device__ Interval queries(int first, int last) const {
    Interval seeing{0, seqlen_q};
    (narrow_queries<Parts>(seeing, first, last), ...);
    return ordered(seeing);
  }

  // Whether all queries from `first` to `last` see all keys in [col0, col0 + cols).
  __device__ bool covers(int first, int last, int col0, int cols) const {
    return ((col0 + cols <= seqlen_k) && ... && within<Parts>(first, last, col0, cols));
  }

 private:
  template <class Part>
  __device__ bool shows(int query, int key) const {
    return within<Part>(query, query, key, 1);
  }

  template <class Part>
  __device__ bool within(int first, int last, int col0, int cols) const {
    bool all = true;
    if constexpr (Part::kCutsAbove) all = col0 + cols <= Part::key_end(first);
    if constexpr (Part::kCutsBelow) all = all && col0 >= Part::key_begin(last);
    return all;
  }

  template <class Part>
  __device__ void narrow_keys(Interval& seen, int first, int last) const {
    if constexpr (Part::kCutsBelow) seen.begin = max(seen.begin, min(Part::key_begin(first), seqlen_k));
    if constexpr (Part::kCutsAbove) seen.end = min(Part::key_end(last), seen.end);
  }

  template <class Part>
  __device__ void narrow_queries(Interval& seeing, int first, int last) const {
    if constexpr (Part::kCutsAbove) seeing.begin = max(seeing.begin, min(Part::query_begin(first), seqlen_q));
    if constexpr (Part::kCutsBelow) seeing.end = min(Part::query_end(last), seeing.end);
  }

  // Begin and end of nothing are equal.
  __device__ static Interval ordered(Interval found) { return {found.begin, max(found.begin, found.end)}; }
};
