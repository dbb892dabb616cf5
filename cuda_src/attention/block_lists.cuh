// Which blocks of keys meet which blocks of queries under a mask that is a traced function: lists that
// attention/block_lists.cu makes before, of the blocks where a query may see a key, in order.
#pragma once
#include "platform.cuh"
#include "ptx/opaque.cuh"

struct BlockLists {
  void* entries;  // [batches, heads, rows, 2 + columns], int: how many, of each 2 * its first row + is_whole, and 0
  int batches, heads, rows, columns;  // of the first two 1 where all have the same
  int packed;                         // heads whose rows stand in one block
};

// Which share of each kCell queries and keys is seen: 0 none, 2 all, 1 some, or it is not known. Of batch and heads
// strides are 0 where all have the same.
constexpr int kCell = 64;

struct BlockTable {
  void* data;  // uint8_t; null: there is none
  int64_t batch_stride, head_stride, row_stride;

  // The same of more: of some heads, queries and keys.
  __device__ int share(int batch, int head, int last_head, int query, int last_query, int key, int last_key) const {
    bool none = true, all = true;
    for (int h = head; h <= last_head; ++h) {
      for (int m = query / kCell; m <= last_query / kCell; ++m) {
        for (int n = key / kCell; n <= last_key / kCell; ++n) {
          const int64_t at = batch * batch_stride + h * head_stride + m * row_stride + n;
          const int share = static_cast<const uint8_t*>(data)[at];
          none &= share == 0, all &= share == 2;
        }
      }
    }
    return none ? 0 : all ? 2 : 1;
  }
};

// Of a part of a mask whose blocks are listed; there is one at most.
template <class Part>
constexpr bool kIsListed = false;

// Positions from first to last, which does not count.
struct Positions {
  int first, last;
};

// The blocks of a row of blocks, at positions from 0 on; `whole` ones are not to be tested. Where it begins is opaque:
// kernels would find it again for each block.
struct BlockList {
  const int* entries;  // from the first block on

  __device__ BlockList(const BlockLists& lists, int batch, int head, int row) {
    const int of_batch = lists.batches > 1 ? batch : 0, of_head = lists.heads > 1 ? head : 0;
    const int64_t number = (static_cast<int64_t>(of_batch) * lists.heads + of_head) * lists.rows + row;
    entries = ptx::opaque(static_cast<const int*>(lists.entries) + number * (2 + lists.columns) + 1);
  }

  __device__ int count() const { return __ldg(entries - 1); }
  // Also of one before the first and one after the last, which mean nothing.
  __device__ int entry(int position) const { return __ldg(entries + position); }
  template <int kSize>
  __device__ int row(int position) const {
    return entry(position) >> 1;
  }
  __device__ bool is_whole(int position) const { return entry(position) & 1; }

  // Those of blocks of kSize that meet [begin, end).
  template <int kSize>
  __device__ Positions positions(int begin, int end) const {
    Positions found{0, count()};
    while (found.first < found.last && row<kSize>(found.first) + kSize <= begin) ++found.first;
    while (found.first < found.last && row<kSize>(found.last - 1) >= end) --found.last;
    return found;
  }

  // Where the block is that begins at a row, or -1.
  template <int kSize>
  __device__ int position(int wanted) const {
    int first = 0, end = count();
    while (first < end) {
      const int middle = (first + end) / 2;
      if (row<kSize>(middle) < wanted) {
        first = middle + 1;
      } else {
        end = middle;
      }
    }
    return first < count() && row<kSize>(first) == wanted ? first : -1;
  }
};

// The same of masks without lists: every block, at the position that is its number.
struct EveryBlock {
  template <int kSize>
  __device__ int row(int position) const {
    return position * kSize;
  }
  __device__ bool is_whole(int position) const { return false; }
  template <int kSize>
  __device__ Positions positions(int begin, int end) const {
    return {begin / kSize, (end + kSize - 1) / kSize};
  }
  template <int kSize>
  __device__ int position(int wanted) const {
    return wanted / kSize;
  }
};

// A walk over rows `at`, kSize of them at a time, from `at` to `end`.
template <int kSize>
struct EveryStep {
  int at, end;

  __device__ bool exists() const { return at < end; }
  __device__ int left() const { return (end - at + kSize - 1) / kSize; }
  __device__ void next() { at += kSize; }
  __device__ bool is_whole() const { return false; }
  __device__ bool is_multiple(int steps) const { return at % (steps * kSize) == 0; }
};
template <int kSize>
struct ListedStep {
  BlockList list;
  int position, last, entry, at;

  __device__ ListedStep(const BlockList& list, Positions positions)
      : list(list), position(positions.first), last(positions.last) {
    read();
  }

  __device__ bool exists() const { return position < last; }
  __device__ int left() const { return last - position; }
  __device__ void next() {
    ++position;
    read();
  }
  __device__ bool is_whole() const { return entry & 1; }
  __device__ bool is_multiple(int steps) const { return position % steps == 0; }

 private:
  __device__ void read() {
    entry = list.entry(position);
    at = entry >> 1;
  }
};

template <int kSize>
__device__ __forceinline__ EveryStep<kSize> steps(EveryBlock, int begin, int end) {
  return {begin, end};
}
template <int kSize>
__device__ __forceinline__ ListedStep<kSize> steps(const BlockList& list, int begin, int end) {
  return {list, list.positions<kSize>(begin, end)};
}
