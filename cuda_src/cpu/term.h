// Gradient of an option that scores are made of: an element has the sum over all scores that it is part of. An item of
// work has all of them, so that each element is written once, whatever the number of threads. It walks over its heads
// and, where the option is constant along queries or keys, over their blocks, with the sums of a block of scores.
#pragma once
#include "cpu/backward_block.h"

template <class T>
class TermJob {
 public:
  TermJob(const Call& call, const BackwardPlan& plan)
      : call_(call), shape_(*call.shape), term_(shape_.term), plan_(plan) {
    Scratch memory(call.memory), worker(nullptr);
    (Worker(*this, worker));
    worker_bytes_ = worker.bytes();
    workers_ = memory.take<char>(call.workers(items()) * worker_bytes_);
    bytes_ = memory.bytes();
  }

  int64_t bytes() const { return bytes_; }  // for call.memory = nullptr
  int64_t items() const { return term_.groups * own_query_blocks() * own_key_blocks(); }
  void begin() const {}

  void run(int64_t item, int64_t index) const {
    Scratch scratch(workers_ + index * worker_bytes_);
    Worker worker(*this, scratch);
    const int64_t key_block = item % own_key_blocks(), rest = item / own_key_blocks();
    const int64_t query_block = rest % own_query_blocks(), group = rest / own_query_blocks();
    __builtin_memset(worker.sums, 0, plan_.keys * worker.pitch * sizeof(T));
    const int64_t first_key = key_block, last_key = term_.own_cols ? key_block + 1 : plan_.key_blocks;
    const int64_t first_query = query_block, last_query = term_.own_rows ? query_block + 1 : plan_.query_blocks;
    for (int64_t b = first_key; b < last_key; ++b) {
      worker.block.begin_keys(b * plan_.keys, clamp(shape_.seqlen_k - b * plan_.keys, 0, plan_.keys));
      for (int64_t m = 0; m < term_.members; ++m) {
        const int64_t head = term_.heads[group * term_.members + m];
        if (head < 0) continue;
        worker.block.begin_head(head);
        worker.block.load_keys(head / shape_.group());
        for (int64_t n = first_query; n < last_query; ++n) {
          const int64_t i = n * plan_.queries;
          worker.block.add_term(head, shape_.first_query + i, clamp(shape_.queries - i, 0, plan_.queries), worker.sums);
        }
      }
    }
    store(worker, group, query_block, key_block);
  }

 private:
  // What a thread has: sums, [keys][queries].
  struct Worker {
    BackwardBlock<T> block;
    int64_t pitch;
    T* sums;

    Worker(const TermJob& job, Scratch& scratch)
        : block(job.call_, job.plan_, scratch),
          pitch(round_up(job.plan_.queries, BackwardBlock<T>::kPanel)),
          sums(scratch.take<T>(round_up(job.plan_.keys, kRowUnit) * pitch)) {}
  };

  int64_t own_query_blocks() const { return term_.own_rows ? plan_.query_blocks : 1; }
  int64_t own_key_blocks() const { return term_.own_cols ? plan_.key_blocks : 1; }

  // What an element is constant along adds up.
  void store(const Worker& worker, int64_t group, int64_t query_block, int64_t key_block) const {
    const int64_t i0 = query_block * plan_.queries, j0 = key_block * plan_.keys;
    const int64_t queries = clamp(shape_.queries - i0, 0, plan_.queries);
    const int64_t keys = clamp(shape_.seqlen_k - j0, 0, plan_.keys);
    T* sums = worker.sums;
    if (!term_.own_rows) {
      for (int64_t j = 0; j < keys; ++j) {
        T* const of_key = sums + j * worker.pitch;
        for (int64_t i = 1; i < worker.pitch; ++i) of_key[0] += of_key[i];
      }
    }
    const int64_t rows = term_.own_rows ? queries : 1;
    if (!term_.own_cols) {
      for (int64_t j = 1; j < keys; ++j) {
        for (int64_t i = 0; i < rows; ++i) sums[i] += sums[j * worker.pitch + i];
      }
    }
    const int64_t all_rows = term_.own_rows ? shape_.seqlen_q : 1, all_cols = term_.own_cols ? shape_.seqlen_k : 1;
    T* const to = (T*)call_.dterm + group * all_rows * all_cols;
    for (int64_t i = 0; i < rows; ++i) {
      T* const row = to + (term_.own_rows ? shape_.first_query + i0 + i : 0) * all_cols + (term_.own_cols ? j0 : 0);
      for (int64_t j = 0; j < (term_.own_cols ? keys : 1); ++j) row[j] = sums[j * worker.pitch + i];
    }
  }

  const Call& call_;
  const Shape& shape_;
  const Term& term_;
  const BackwardPlan plan_;
  int64_t worker_bytes_, bytes_;
  char* workers_;
};
