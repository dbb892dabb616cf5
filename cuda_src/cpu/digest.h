// What arrays hold, in 64 bits for each array and head: a change shows but for one in 2^64.
#pragma once
#include "cpu/scratch.h"
#include "cpu/shape.h"

// Four chains, so that one's multiplication does not wait for another's. Each step is one to one in its word, and
// brings down the upper bits, which a product only passes upwards.
class Digest {
 public:
  void add(const char* data, int64_t bytes) {
    uint64_t a = chain_[0], b = chain_[1], c = chain_[2], d = chain_[3];  // data might be chain_, for all that is known
    int64_t i = 0;
    for (; i + 32 <= bytes; i += 32) {
      a = step(a, data + i), b = step(b, data + i + 8), c = step(c, data + i + 16), d = step(d, data + i + 24);
    }
    for (; i < bytes; i += 8) {
      char word[8] = {};
      __builtin_memcpy(word, data + i, clamp(bytes - i, 0, 8));
      a = step(a, word);
    }
    chain_[0] = a, chain_[1] = b, chain_[2] = c, chain_[3] = d;
  }

  uint64_t value() const {
    uint64_t x = chain_[0];
    for (int n = 1; n < 4; ++n) x = step(x, (const char*)(chain_ + n));
    return x;
  }

 private:
  static uint64_t step(uint64_t chain, const char* data) {
    uint64_t word;
    __builtin_memcpy(&word, data, 8);
    const uint64_t x = (chain ^ word) * 0x9e3779b97f4a7c15;
    return x ^ x >> 32;
  }

  uint64_t chain_[4] = {1, 2, 3, 4};
};

// An item is a head of q, out and lse and, if its group begins with it, of k and v. The call's memory takes the result,
// five numbers for each head of q: of q, k, v, out and lse.
class DigestJob {
 public:
  explicit DigestJob(const Call& call) : call_(call), shape_(*call.shape) {}

  int64_t bytes() const { return items() * 5 * sizeof(uint64_t); }
  int64_t items() const { return shape_.heads_q; }
  void begin() const {}

  void run(int64_t head, int64_t) const {
    const Shape& s = shape_;
    uint64_t* digests = (uint64_t*)call_.memory + 5 * head;
    const int64_t size = element_size(s.dtype), sum_size = s.dtype == kFloat64 ? 8 : 4;
    const bool first = head % s.group() == 0;
    digests[0] = of(call_.q, s.q, head, s.seqlen_q, s.head_dim, size);
    digests[1] = first ? of(call_.k, s.k, head / s.group(), s.seqlen_k, s.head_dim, size) : 0;
    digests[2] = first ? of(call_.v, s.v, head / s.group(), s.seqlen_k, s.head_dim_v, size) : 0;
    digests[3] = of(call_.out, s.out, head, s.seqlen_q, s.head_dim_v, size);
    digests[4] = of(call_.lse, s.lse, head, s.seqlen_q, 1, sum_size);
  }

 private:
  static int64_t element_size(int64_t dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

  static uint64_t of(char* data, const Layout& layout, int64_t head, int64_t rows, int64_t cols, int64_t size) {
    Digest digest;
    for (int64_t i = 0; i < rows; ++i) {
      const char* row = at(data, layout, head, i);
      if (cols == 1 || layout.col == size) {
        digest.add(row, cols * size);
      } else {
        for (int64_t c = 0; c < cols; ++c) digest.add(row + c * layout.col, size);
      }
    }
    return digest.value();
  }

  const Call& call_;
  const Shape& shape_;
};
