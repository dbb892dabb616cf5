// The forward: blocks of queries, side by side in panels or, where there are very few, row by row. Where there are few
// blocks, several items of work share one, each with a chunk of the keys (Flash-Decoding).
#pragma once
#include "cpu/forward_panels.h"
#include "cpu/forward_rows.h"

// The items of a call. Its memory holds a counter for each block of queries, states (one a worker, or one an item where
// items share a block), and each worker's scratch.
template <class T, class Block>
class ForwardJob {
 public:
  ForwardJob(const Call& call, const ForwardPlan& plan) : call_(call), plan_(plan) {
    Scratch memory(call.memory), worker(nullptr), state(nullptr);
    Block(call, plan, worker).state(state);
    worker_bytes_ = worker.bytes(), state_bytes_ = state.bytes();
    ended_ = memory.take<int32_t>(plan.units * plan.blocks);
    states_ = memory.take<char>((shares() ? items() : call.workers(items())) * state_bytes_);
    workers_ = memory.take<char>(call.workers(items()) * worker_bytes_);
    bytes_ = memory.bytes();
  }

  int64_t bytes() const { return bytes_; }  // for call.memory = nullptr
  int64_t items() const { return plan_.items(); }

  void begin() const { __builtin_memset(ended_, 0, plan_.units * plan_.blocks * sizeof *ended_); }

  void run(int64_t item, int64_t worker) const {
    const int64_t number = item / plan_.chunks, chunk = item % plan_.chunks;
    const auto [unit, i] = plan_.work(number);
    Scratch scratch(workers_ + worker * worker_bytes_);
    Block queries(call_, plan_, scratch);
    const Span keys = queries.begin(unit, i);
    const int64_t j0 = keys.begin + chunk * plan_.chunk, j1 = clamp(j0 + plan_.chunk, 0, keys.end);
    queries.attend(unit, i, j0, j1, state(queries, shares() ? item : worker));
    if (__atomic_add_fetch(ended_ + number, 1, __ATOMIC_ACQ_REL) < plan_.chunks) return;
    const int64_t first = shares() ? item - chunk : worker;
    if (shares()) queries.merge(i, [&](int64_t c) { return state(queries, first + c); }, plan_.chunks);
    queries.finish(unit, i, state(queries, first));
  }

 private:
  bool shares() const { return plan_.chunks > 1; }

  ForwardState<T> state(const Block& block, int64_t index) const {
    Scratch scratch(states_ + index * state_bytes_);
    return block.state(scratch);
  }

  const Call& call_;
  const ForwardPlan plan_;
  int64_t worker_bytes_, state_bytes_, bytes_;
  int32_t* ended_;
  char *states_, *workers_;
};
