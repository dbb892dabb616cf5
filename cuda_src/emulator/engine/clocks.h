// Vector clocks: which thread knows of which other thread's past (Mattern 1989; Flanagan and Freund,
// FastTrack, 2009). known(t, u) is the latest time of u whose effects are ordered before what t does next.
#pragma once
#include "types.h"

namespace emulator {

class Clocks {
 public:
  void reset(int threads) {
    threads_ = threads;
    known_.assign(static_cast<size_t>(threads) * threads, 0);
    for (int t = 0; t < threads; ++t) row(t)[t] = 1;
  }
  uint32_t now(int thread) const { return known_[static_cast<size_t>(thread) * threads_ + thread]; }
  bool ordered(int earlier, uint32_t time, int later) const {
    return earlier == later || known_[static_cast<size_t>(later) * threads_ + earlier] >= time;
  }
  // `to` comes to know what the thread has done so far.
  void release(int thread, std::vector<uint32_t>& to) {
    join(thread, to);
    tick(thread);
  }
  // All of the threads come to know what all of them and `released` know.
  void synchronise(const std::vector<int>& threads, std::vector<uint32_t>& released) {
    for (int t : threads) join(t, released);
    for (int t : threads) {
      std::copy(released.begin(), released.end(), row(t));
      tick(t);
    }
  }
  void tick(int thread) { ++row(thread)[thread]; }

 private:
  void join(int thread, std::vector<uint32_t>& to) {
    to.resize(threads_);
    const uint32_t* from = row(thread);
    for (int t = 0; t < threads_; ++t) to[t] = std::max(to[t], from[t]);
  }
  uint32_t* row(int thread) { return known_.data() + static_cast<size_t>(thread) * threads_; }
  int threads_ = 0;
  std::vector<uint32_t> known_;
};

}  // namespace emulator
