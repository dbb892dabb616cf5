// One thread's memory, handed out piece by piece.
#pragma once
#include "cpu/vector.h"

constexpr int64_t kAlignment = 64;  // a cache line

template <class T>
inline int64_t whole_vectors(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}
template <class T>
inline int64_t whole_panels(int64_t n) {
  return (n + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// Starting from 0 it hands out nothing usable, but counts.
class Scratch {
 public:
  explicit Scratch(void* begin) : next_((uintptr_t(begin) + kAlignment - 1) / kAlignment * kAlignment) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = (T*)next_;
    next_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }

  int64_t bytes() const { return int64_t(next_) + kAlignment; }

 private:
  uintptr_t next_;
};
