// The backward: items of work are blocks of keys, whose parts of dQ meet.
#pragma once
#include <sched.h>

#include "cpu/backward_block.h"

// Its memory holds turns, sums of dQ and each worker's scratch. The parts of a row of dQ are added in the order of the
// blocks of keys, whichever thread has them.
template <class T>
class BackwardJob {
 public:
  BackwardJob(const Call& call, const BackwardPlan& plan)
      : call_(call), shape_(*call.shape), plan_(plan), members_(call.dterm ? shape_.order.members : 1) {
    Scratch memory(call.memory), worker(nullptr);
    Block(call, plan, worker);
    worker_bytes_ = worker.bytes();
    turns_ = memory.take<int32_t>(shape_.heads_q * plan.query_blocks);
    const bool widens = shape_.out_dtype == kFloat16 || shape_.out_dtype == kBFloat16;
    sum_pitch_ = round_up(shape_.head_dim, kLanes<T>);
    sums_ = widens && plan.key_blocks > 1 ? memory.take<T>(shape_.heads_q * shape_.seqlen_q * sum_pitch_) : nullptr;
    workers_ = memory.take<char>(call.workers(items()) * worker_bytes_);
    bytes_ = memory.bytes();
  }

  int64_t bytes() const { return bytes_; }  // for call.memory = nullptr
  int64_t items() const { return plan_.heads * plan_.key_blocks / members_; }

  void begin() const { __builtin_memset(turns_, 0, shape_.heads_q * plan_.query_blocks * sizeof *turns_); }

  // All heads of one block of keys come before the next: threads then rarely meet in one head, where they would have to
  // wait for their turns. When causal, the most queries see the first blocks. Heads that have elements of a bias in
  // common are one item's, where these grow: in their order.
  void run(int64_t item, int64_t worker) const {
    Scratch scratch(workers_ + worker * worker_bytes_);
    Block keys(call_, plan_, scratch);
    for (int64_t index = item * members_; index < (item + 1) * members_; ++index) {
      attend_keys(keys, index / plan_.heads, shape_.order.heads[index % plan_.heads]);
    }
  }

 private:
  using Block = BackwardBlock<T>;

  // A block of a key head's keys.
  void attend_keys(Block& keys, int64_t block, int64_t head) const {
    const int64_t j0 = block * plan_.keys;
    const int64_t count = clamp(shape_.seqlen_k - j0, 0, plan_.keys), total = shape_.queries;
    const int64_t elements = shape_.seqlen_q * shape_.seqlen_k;  // of a bias for each head
    keys.begin_keys(j0, count);
    bool loaded = false;
    for (int64_t h = head * shape_.group(); h < (head + 1) * shape_.group(); ++h) {
      // Among the queries that may see a key: those that see one of these.
      const KeyMask& mask = keys.begin_head(h);
      T* const dbias = call_.dterm ? (T*)call_.dterm + shape_.term.group_of[h] * elements : nullptr;
      const int64_t first = mask.query_begin(j0) - shape_.first_query;
      const int64_t end = mask.query_end(j0 + count - 1) - shape_.first_query;
      const int64_t block_begin = first / plan_.queries, block_end = ceil_div(end, plan_.queries);
      // The last first: of a window, the next block of keys has in common with this one what it comes to in the end.
      for (int64_t n = block_end - 1; n >= block_begin; --n) {
        const int64_t i = n * plan_.queries, i0 = shape_.first_query + i, rows = clamp(total - i, 0, plan_.queries);
        if (!is_seen(mask, block, i0, rows)) continue;
        if (!loaded) keys.load_keys(head), loaded = true;
        keys.attend(h, i0, rows, dbias);
        if (!call_.dq) continue;
        // Of the blocks of keys that these queries see the earlier ones add their parts before this one. They have
        // begun, as items are taken in order: so the wait ends, and soon.
        const int64_t before = next_seen(mask, block, -1, i0, rows), after = next_seen(mask, block, 1, i0, rows);
        int32_t* turn = turns_ + h * plan_.query_blocks + n;  // the last block that has added its part, and 1
        while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != before + 1) sched_yield();
        add_dq(keys, h, i0, rows, before < 0, after < 0);
        __atomic_store_n(turn, int32_t(block + 1), __ATOMIC_RELEASE);
      }
    }
    keys.store_keys(head);
  }

  // Whether queries see some of a block of keys, as far as it is known.
  bool is_seen(const KeyMask& mask, int64_t block, int64_t i0, int64_t rows) const {
    const int64_t j0 = block * plan_.keys;
    return mask.keys(i0, i0 + rows - 1, {j0, clamp(j0 + plan_.keys, 0, shape_.seqlen_k)}).size() > 0;
  }

  // The nearest of which they do, before (step -1) or after (1) a block; -1: there is none.
  int64_t next_seen(const KeyMask& mask, int64_t block, int64_t step, int64_t i0, int64_t rows) const {
    const int64_t first = mask.key_begin(i0) / plan_.keys, end = ceil_div(mask.key_end(i0 + rows - 1), plan_.keys);
    do block += step;
    while (first <= block && block < end && !is_seen(mask, block, i0, rows));
    return first <= block && block < end ? block : -1;
  }

  // The columns of dq lie side by side.
  void add_dq(const Block& keys, int64_t head, int64_t i0, int64_t rows, bool first, bool last) const {
    const int64_t d = shape_.head_dim;
    for (int64_t i = 0; i < rows; ++i) {
      char* row = at(call_.dq, shape_.dq, head, i0 + i);
      T* sum = sums_ ? sums_ + (head * shape_.seqlen_q + i0 + i) * sum_pitch_ : (T*)row;
      const T* part = keys.dq(i);
      if (first && last) {
        store_row(shape_.out_dtype, row, shape_.dq.col, part, d);
        continue;
      }
      for (int64_t c = 0; c < d; ++c) sum[c] = first ? part[c] : sum[c] + part[c];
      if (last && sums_) store_row(shape_.out_dtype, row, shape_.dq.col, sum, d);
    }
  }

  const Call& call_;
  const Shape& shape_;
  const BackwardPlan plan_;
  const int64_t members_;  // key heads of an item
  int64_t worker_bytes_, sum_pitch_, bytes_;
  int32_t* turns_;
  T* sums_;
  char* workers_;
};
