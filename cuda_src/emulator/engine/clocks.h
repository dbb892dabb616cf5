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
  // All of `sources` release, all of `targets` (a subset) acquire; then every source's time goes on.
  void synchronise(const std::vector<int>& sources, const std::vector<int>& targets) {
    joined_.assign(threads_, 0);
    for (int s : sources) {
      const uint32_t* from = row(s);
      for (int t = 0; t < threads_; ++t) joined_[t] = std::max(joined_[t], from[t]);
    }
    for (int t : targets) std::copy(joined_.begin(), joined_.end(), row(t));
    for (int s : sources) ++row(s)[s];
  }
  void tick(int thread) { ++row(thread)[thread]; }

 private:
  uint32_t* row(int thread) { return known_.data() + static_cast<size_t>(thread) * threads_; }
  int threads_ = 0;
  std::vector<uint32_t> known_, joined_;
};

}  // namespace emulator
