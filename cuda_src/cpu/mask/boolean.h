// Query i sees key j when mask[..., i, j] is true.
#pragma once
#include "cpu/mask.h"
#include "cpu/place.h"

struct BooleanParams {
  Layout mask;
};

class Boolean : public Unbounded {
 public:
  static constexpr bool kElementwise = true;

  template <class Place>
  Boolean(const BooleanParams& params, const Place& place)
      : data_((const uint8_t*)place.begin(params.mask, place.arrays.mask)),
        row_(params.mask.row),
        col_(params.mask.col),
        seqlen_k_(place.shape.seqlen_k) {}

  bool shows(int64_t query, int64_t key) const { return !data_ || data_[query * row_ + key * col_]; }

  // Where a row's keys lie side by side, words of rows are transposed in registers.
  template <class T>
  Share shown(const Integer<T>* rows, int64_t queries, int64_t first, int64_t keys, uint8_t* tile, Share) const {
    constexpr int64_t kWord = sizeof(T);
    if (!data_) return kAll;
    const uint8_t* data = data_ + first * col_;
    const Share share = looked_through(data, rows, row_ ? queries : 1, keys);
    if (share != kSome) return share;
    if (col_ == 1 && queries % kLanes<T> == 0) {
      for (int64_t j = 0; j < keys; j += kVectorBytes) {
        for (int64_t n = 0; n < queries; n += kLanes<T>) {
          const int64_t bytes = clamp(seqlen_k_ - first - j, 0, kVectorBytes);
          turn<T>(data + j, rows + n, bytes, keys - j, tile + j * queries + n * kWord, queries);
        }
      }
    } else {
      for (int64_t j = 0; j < keys; ++j) {
        uint8_t* of_key = tile + j / kWord * queries * kWord + j % kWord;
        for (int64_t n = 0; n < queries; ++n) of_key[n * kWord] = data[rows[n] * row_ + j * col_];
      }
    }
    return kSome;
  }

 private:
  // Which share of so many queries and keys is shown. Bytes other than 0 and 1 are true too, and pass for some.
  template <class Row>
  Share looked_through(const uint8_t* data, const Row* rows, int64_t queries, int64_t keys) const {
    constexpr uint64_t kTrue = 0x0101010101010101;
    uint64_t all = kTrue, some = 0;
    for (int64_t n = 0; n < queries; ++n) {
      const uint8_t* x = data + rows[n] * row_;
      int64_t j = 0;
      for (; col_ == 1 && j + 8 <= keys; j += 8) {
        uint64_t word;
        __builtin_memcpy(&word, x + j, 8);
        all &= word, some |= word;
      }
      for (; j < keys; ++j) all &= kTrue * (x[j * col_] == 1), some |= x[j * col_];
      if (some && all != kTrue) return kSome;
    }
    return some ? kAll : kNone;
  }

  // As many rows as a vector has lanes; so many bytes of each are there, and some of them wanted.
  template <class T>
  void turn(const uint8_t* x, const Integer<T>* rows, int64_t bytes, int64_t keys, uint8_t* y, int64_t queries) const {
    constexpr int kStep = kLanes<T>;
    Vector<T> square[kStep];
    UNROLL
    for (int i = 0; i < kStep; ++i) {
      const uint8_t* row = x + rows[i] * row_;
      uint8_t buffer[kVectorBytes] = {};
      if (bytes < kVectorBytes) row = (const uint8_t*)__builtin_memcpy(buffer, row, bytes);
      square[i] = load_as<Vector<T>>(row);
    }
    transpose_square<T>(square);
    UNROLL
    for (int w = 0; w < kStep; ++w) {
      if (w * int64_t(sizeof(T)) < keys) store(y + w * queries * sizeof(T), square[w]);
    }
  }

  const uint8_t* data_;  // of the head
  int64_t row_, col_, seqlen_k_;
};
