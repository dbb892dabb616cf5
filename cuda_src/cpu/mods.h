// How the CPU backend calls functions that are traced and compiled by themselves. A panel has queries in the lanes, a
// row keys. Keys beyond the last are taken for it: what becomes of them is not used.
#pragma once
#include "cpu/expression.h"
#include "cpu/sizes.h"

inline IntLanes keys_from(int64_t first, int64_t last) {
  const IntLanes key = lane_index<Number>() + Int(first), end = np::lanes(Int(last));
  return key > end ? end : key;
}

// 1 in each byte that is not 0.
inline IntLanes is_set(IntLanes words) {
  for (int bits = 4; bits > 0; bits /= 2) words |= words >> bits;
  return words & Int(0x0101010101010101);
}

// score(params, b, h, i, natural) computes what depends on queries alone, and returns what does the rest for keys:
// (j, x, kept), from what comes in at x, times `natural`, to natural scores; to `kept`, unless it is null, the
// derivative. The parameters are a copy, which no store changes.
#define SCORE_FUNCTIONS(Params)                                                                                     \
  template <bool kKeeps>                                                                                            \
  static void panel(const Params& params, Int b, Int h, const Int* queries, int64_t lanes, int64_t keys,            \
                    int64_t pitch, int64_t first_key, int64_t last_key, Number natural, Number* x, Number* kept) {  \
    for (int64_t n = 0; n < lanes; n += kLanes<Number>) {                                                           \
      const auto of_key = score<kKeeps>(params, b, h, load_as<IntLanes>(queries + n), natural);                     \
      for (int64_t k = 0; k < keys; ++k) {                                                                          \
        const int64_t at = k * pitch + n;                                                                           \
        of_key(Int(clamp(first_key + k, 0, last_key)), x + at, kKeeps ? kept + at : nullptr);                       \
      }                                                                                                             \
    }                                                                                                               \
  }                                                                                                                 \
  extern "C" void score_panel(const void* params, int64_t b, int64_t h, const Int* queries, int64_t lanes,          \
                              int64_t keys, int64_t pitch, int64_t first_key, int64_t last_key, double natural,     \
                              Number* x, Number* kept) {                                                            \
    const auto call = kept ? panel<true> : panel<false>;                                                            \
    call(*(const Params*)params, Int(b), Int(h), queries, lanes, keys, pitch, first_key, last_key,                  \
         Number(natural), x, kept);                                                                                 \
  }                                                                                                                 \
  extern "C" void score_row(const void* params, int64_t b, int64_t h, int64_t query, int64_t keys,                  \
                            int64_t first_key, int64_t last_key, double natural, Number* x) {                       \
    const auto of_key = score<false>(*(const Params*)params, Int(b), Int(h), Int(query), Number(natural));          \
    for (int64_t k = 0; k < keys; k += kLanes<Number>) of_key(keys_from(first_key + k, last_key), x + k, nullptr);  \
  }

// shows(params, b, h, i) likewise returns what tells of keys j whether they are seen. The functions tell which share
// of a tile is, and of some they write a byte for each score, as MaskOf::shown of cpu/mask.h does; joined with what is
// there where `joins`.
#define MASK_FUNCTIONS(Params)                                                                                      \
  extern "C" int64_t mask_panel(const void* params, int64_t b, int64_t h, const Int* queries, int64_t count,        \
                                int64_t first_key, int64_t keys, int64_t last_key, uint8_t* tile, int64_t joins) {  \
    constexpr int kWord = sizeof(Number);                                                                           \
    IntLanes all = ~IntLanes{}, some = {};                                                                          \
    for (int64_t n = 0; n < count; n += kLanes<Number>) {                                                           \
      const auto of_key = shows(*(const Params*)params, Int(b), Int(h), load_as<IntLanes>(queries + n));            \
      for (int64_t w = 0; w < keys; w += kWord) {                                                                   \
        IntLanes words = {};                                                                                        \
        for (int t = 0; t < kWord && w + t < keys; ++t) {                                                           \
          const IntLanes seen = of_key(Int(clamp(first_key + w + t, 0, last_key)));                                 \
          all &= seen, some |= seen;                                                                                \
          words |= seen & (Int(1) << 8 * t);                                                                        \
        }                                                                                                           \
        uint8_t* const to = tile + w * count + n * kWord;                                                           \
        store(to, joins ? words & is_set(load_as<IntLanes>(to)) : words);                                           \
      }                                                                                                             \
    }                                                                                                               \
    return !any(~all) ? 2 : any(some);                                                                              \
  }                                                                                                                 \
  extern "C" int64_t mask_row(const void* params, int64_t b, int64_t h, int64_t query, int64_t first_key,           \
                              int64_t keys, int64_t last_key, uint8_t* tile, int64_t joins) {                       \
    const auto of_key = shows(*(const Params*)params, Int(b), Int(h), Int(query));                                  \
    int64_t count = 0;                                                                                              \
    for (int64_t k = 0; k < keys; k += kLanes<Number>) {                                                            \
      const IntLanes seen = of_key(keys_from(first_key + k, last_key));                                             \
      for (int64_t t = 0; t < kLanes<Number> && k + t < keys; ++t) {                                                \
        count -= seen[t];                                                                                           \
        tile[k + t] = seen[t] && !(joins && tile[k + t] == 0);                                                      \
      }                                                                                                             \
    }                                                                                                               \
    return count == keys ? 2 : count > 0;                                                                           \
  }
