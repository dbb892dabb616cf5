// Which keys a query sees: those that exist and that no part hides, a compile-time list of types. Blocks that the mask
// rules out are never loaded, and blocks that it leaves whole are never tested element by element.
//
// A part gives each query an interval of keys by two functions, neither of which falls as its argument rises:
// key_end(query), before which the query sees keys, and query_begin(key), before which no query sees the key; they say
// the same, query >= query_begin(key) exactly where key < key_end(query). The file that includes this has included the
// parts, and `Components`, what they are told.
#pragma once
#include "attention/place.cuh"

template <class... Parts>
struct MaskOf : Parts... {
  int seqlen_q, seqlen_k;

  __device__ MaskOf(const Components& params, const Place& place)
      : Parts(params, place)..., seqlen_q(place.seqlen_q), seqlen_k(place.seqlen_k) {}

  // Of a query, in the head that is so many after place.head.
  struct Row {
    const MaskOf& mask;
    int query;

    __device__ bool sees(int key) const {
      return ((key < mask.seqlen_k) && ... && (key < mask.Parts::key_end(query)));
    }
  };

  __device__ Row row(int query, int head) const { return {*this, query}; }

  // Queries up to `last_row` see only keys before this one.
  __device__ int key_end(int last_row) const {
    int end = seqlen_k;
    ((end = max(0, min(Parts::key_end(last_row), end))), ...);
    return end;
  }

  // Keys from `first_col` on are seen only by queries from this one on.
  __device__ int query_begin(int first_col) const {
    int begin = 0;
    ((begin = max(begin, min(Parts::query_begin(first_col), seqlen_q))), ...);
    return begin;
  }

  // Whether every query from row0 on sees all keys in [col0, col0 + cols).
  __device__ bool covers(int row0, int col0, int cols) const {
    return ((col0 + cols <= seqlen_k) && ... && (col0 + cols <= Parts::key_end(row0)));
  }
};
