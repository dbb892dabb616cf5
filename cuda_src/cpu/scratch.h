// Memory handed out piece by piece.
#pragma once
#include "cpu/sizes.h"
#include "cpu/vector.h"

constexpr int64_t kAlignment = 64;  // a cache line

// Starting from nullptr it hands out nothing usable, but counts.
class Scratch {
 public:
  explicit Scratch(char* begin) : next_(round_up(int64_t(begin), kAlignment)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = (T*)next_;
    next_ += round_up(count * sizeof(T), kAlignment);
    return piece;
  }

  // Of what was taken, and to align the beginning: the size of memory to begin with.
  int64_t bytes() const { return next_ + kAlignment; }

 private:
  int64_t next_;
};
