// What the queries of a panel see that keys of a tile are hidden from.
#pragma once
#include "cpu/shape.h"

// A query in each lane of N vectors. Their intervals of keys are looked up once: a test of a key is then two
// comparisons, however many parts the mask has.
template <class T, int N>
class PanelMask {
 public:
  // Queries that are rows rows[i]; of a tile of MaskOf::shown, or null, whose first key is `first`.
  void look(const KeyMask& mask, const Integer<T>* rows, const uint8_t* shown, int64_t first) {
    for (int i = 0; i < N * kLanes<T>; ++i) {
      begin_[i] = Integer<T>(mask.key_begin(rows[i])), end_[i] = Integer<T>(mask.key_end(rows[i]));
    }
    shown_ = shown, first_ = first;
  }

  // Which of the queries of the n-th vector see the key, as far as it is no matter of elements.
  inline ALWAYS_INLINE Mask<T> within(int n, int64_t key) const {
    const Integer<T> j = Integer<T>(key);
    return (load_as<Mask<T>>(begin_ + n * kLanes<T>) <= j) & (load_as<Mask<T>>(end_ + n * kLanes<T>) > j);
  }

  // Which do see it.
  inline ALWAYS_INLINE Mask<T> sees(int n, int64_t key) const {
    if (!shown_) return within(n, key);
    const int64_t j = key - first_, word = j / kWord;
    const Mask<T> words = load_as<Mask<T>>(shown_ + (word * N + n) * kVectorBytes);
    return within(n, key) & ((words >> 8 * (j % kWord) & 0xff) != 0);
  }

 private:
  static constexpr int64_t kWord = sizeof(T);

  Integer<T> begin_[N * kLanes<T>], end_[N * kLanes<T>];
  const uint8_t* shown_;
  int64_t first_;
};
