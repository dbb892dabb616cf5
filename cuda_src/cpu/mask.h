// Which keys a query sees, as in attention/mask.cuh, for the vectors of a CPU.
#pragma once
#include "cpu/sizes.h"
#include "cpu/vector.h"

// How many of some scores a mask shows.
enum Share { kNone, kSome, kAll };

// What a part of a mask says where it has no bound.
struct Unbounded {
  static constexpr bool kElementwise = false;

  int64_t key_begin(int64_t) const { return 0; }
  int64_t key_end(int64_t) const { return INT64_MAX; }
  int64_t query_begin(int64_t) const { return 0; }
  int64_t query_end(int64_t) const { return INT64_MAX; }

  bool shows(int64_t, int64_t) const { return true; }
  Span keys(int64_t, int64_t, Span among) const { return among; }
};

// Of so many keys those that some of the queries see, by a tile that MaskOf::shown wrote; in whole words.
template <class T>
Span shown_keys(const uint8_t* tile, int64_t queries, int64_t keys) {
  constexpr int64_t kWord = sizeof(T);
  const auto is_seen = [&](int64_t word) {
    uint64_t bits = 0, eight;
    for (int64_t i = 0; i < queries * kWord; i += 8) {
      __builtin_memcpy(&eight, tile + word * queries * kWord + i, 8);
      bits |= eight;
    }
    return bits != 0;
  };
  Span words{0, ceil_div(keys, kWord)};
  while (words.begin < words.end && !is_seen(words.begin)) ++words.begin;
  while (words.begin < words.end && !is_seen(words.end - 1)) --words.end;
  return {words.begin * kWord, clamp(words.end * kWord, 0, keys)};
}

// What all of some parts let a query see. A part is a class of cpu/mask, made of its parameters and the place, with
// those of the functions of Unbounded that it has a bound for:
//   key_begin(query), key_end(query)      the query sees the keys from the one on that lie before the other
//   query_begin(key), query_end(key)      the key is seen by the queries from the one on that lie before the other
// None of them falls as its argument rises, and both lines say the same. All parts are compiled in; one that is not in
// effect, of parameters that are all 0, hides nothing. One that is kElementwise hides keys within these bounds too:
//   shows(query, key)                                    of those
//   shown<T>(rows, queries, first, keys, tile, before)   which share of a tile, of the one that others before it show
//   keys(low, high, among)                               a span of keys, of queries from `low` to `high`, without those
//                                                        at its ends that are known to be hidden
// Of kSome `shown` writes a byte for each score, 0 where it is hidden: those of as many keys as T has bytes side by
// side, then those of the next query; last come further keys.
template <class... Parts>
class MaskOf : Parts... {
 public:
  template <class Place>
  explicit MaskOf(const Place& place)
      : Parts(place.shape.components, place)..., seqlen_q_(place.shape.seqlen_q), seqlen_k_(place.shape.seqlen_k) {}

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

  // Keys from this one on are seen only by queries from that one on.
  int64_t query_begin(int64_t key) const {
    int64_t begin = 0;
    ((begin = clamp(Parts::query_begin(key), begin, seqlen_q_)), ...);
    return begin;
  }

  // Keys up to this one are seen only by queries before that one.
  int64_t query_end(int64_t key) const {
    int64_t end = seqlen_q_;
    ((end = clamp(Parts::query_end(key), 0, end)), ...);
    return end;
  }

  bool sees(int64_t query, int64_t key) const {
    return key_begin(query) <= key && key < key_end(query) && (Parts::shows(query, key) && ...);
  }

  // Those keys of a span that queries from `low` to `high` see lie in this one.
  Span keys(int64_t low, int64_t high, Span among) const {
    among.begin = clamp(key_begin(low), among.begin, among.end);
    among.end = clamp(key_end(high), among.begin, among.end);
    ((among = Parts::keys(low, high, among)), ...);
    return among;
  }

  // Of what lies within the bounds: these queries, which are rows rows[i], and keys from `first` on.
  template <class T>
  Share shown(const Integer<T>* rows, int64_t queries, int64_t first, int64_t keys, uint8_t* tile) const {
    Share share = kAll;
    (look<Parts, T>(share, rows, queries, first, keys, tile), ...);
    return share;
  }

  // Whether keys in [first, first + keys) are within the bounds of every query from `low` to `high`, and no padding.
  bool covers(int64_t low, int64_t high, int64_t first, int64_t keys) const {
    return key_begin(high) <= first && first + keys <= key_end(low);
  }

 private:
  template <class Part, class T>
  void look(Share& share, const Integer<T>* rows, int64_t queries, int64_t first, int64_t keys, uint8_t* tile) const {
    if constexpr (Part::kElementwise) share = Part::template shown<T>(rows, queries, first, keys, tile, share);
  }

  int64_t seqlen_q_, seqlen_k_;
};
