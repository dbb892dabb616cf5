// Kernel parameters, passed by value. Python reads their layout here: cupy_flash/_src/structs.py.
#pragma once
#include "platform.cuh"

constexpr int kBatchDims = 4;

// A number that indices are divided by. GPUs have no division: for 0 <= n < 2^31 it is a product and a shift with what
// the host worked out once (Granlund and Montgomery 1994, section 4).
struct Divisor {
  int value;
  uint32_t multiplier, shift;  // ceil(2^(31 + shift) / value), where 2^shift is the least power of two from value on

  __device__ __forceinline__ operator int() const { return value; }
};
__device__ __forceinline__ int operator/(int n, const Divisor& divisor) {
  const uint64_t product = static_cast<uint64_t>(2u * n) * divisor.multiplier;
  return static_cast<int>(static_cast<uint32_t>(product >> 32) >> divisor.shift);
}
__device__ __forceinline__ int operator%(int n, const Divisor& divisor) { return n - n / divisor * divisor.value; }

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ int ceil_div(int a, const Divisor& b) { return (a + b - 1) / b; }

// A tensor of shape [batch..., heads, rows, cols]. Strides count elements; a broadcast dimension has stride 0.
struct Tensor {
  void* data;
  int64_t batch_strides[kBatchDims];
  int64_t head_stride;
  int64_t row_stride;
  int64_t col_stride;
  // 16, 8 or 4 where columns are contiguous and every row is whole vectors of so many bytes, aligned to them; else 0.
  int64_t vector_bytes;
};

struct Shape {
  Divisor batch[kBatchDims];  // outermost first, padded with 1 in front
  Divisor num_heads_q;
  Divisor num_heads_k;
  Divisor group_size;  // query heads for each key head
  int seqlen_q;
  int seqlen_k;
  int head_dim;
  int head_dim_v;
  int q_offset;  // query i stands at key i + q_offset
  int first_batch;  // of the whole batch, where it comes in parts
};

// How the plan lays work out over blocks: attention/schedule.cuh.
struct Schedule {
  Divisor query_blocks;  // tiles of query rows a head, or a packed group
  Divisor key_blocks;    // tiles of keys a head, of the backward
  // Forward: blocks that share the keys of one tile of queries; each writes a partial result if there are several.
  // Backward: blocks that share the query heads of one tile of keys; if there are several, dK and dV are added up.
  Divisor num_splits;
  Divisor packed_heads;   // query heads of a group whose rows stand in one tile: the whole group or 1
  Divisor members;        // tiles beside one another that read the same keys: query heads of a group / packed_heads
  Divisor section_heads;  // key heads whose keys and values fit the L2 cache together: a section
  Divisor last_section_heads;
  Divisor section_blocks;
  int last_section;
  // Forward on CUDA cores: launches that take a part of the keys each, and which of them this is.
  int num_spans;
  int span;
};

struct ForwardParams {
  Shape shape;
  Schedule schedule;
  Tensor q;    // [batch..., Hq, Sq, D]
  Tensor k;    // [batch..., Hk, Sk, D]
  Tensor v;    // [batch..., Hk, Sk, Dv]
  Tensor out;  // [batch..., Hq, Sq, Dv]
  Tensor lse;  // [batch..., Hq, Sq, 1], accumulator type
  // Of all splits, one after the other, or of all spans so far; contiguous; unused (null) where there is one of each.
  Tensor partial_out;   // [splits, batch..., Hq, Sq, Dv], accumulator type
  Tensor partial_rows;  // [splits, batch..., Hq, Sq, 2], accumulator type: row_max and row_sum of a softmax
};

struct BackwardParams {
  Shape shape;
  Schedule schedule;
  Tensor q;       // [batch..., Hq, Sq, D]
  Tensor k;       // [batch..., Hk, Sk, D]
  Tensor v;       // [batch..., Hk, Sk, Dv]
  Tensor out;     // [batch..., Hq, Sq, Dv]; of merged chunks of keys: accumulator type, as is dq then
  Tensor dout;    // [batch..., Hq, Sq, Dv]
  Tensor lse;     // [batch..., Hq, Sq, 1], accumulator type
  Tensor dlse;    // [batch..., Hq, Sq, 1], accumulator type; data may be null
  Tensor delta;   // [batch..., Hq, Sq, 1], accumulator type
  Tensor dq;      // [batch..., Hq, Sq, D]
  Tensor dq_acc;  // [batch..., Hq, Sq, D], accumulator type: where atomics add; dq itself if of this type
  Tensor dk;      // [batch..., Hk, Sk, D]
  Tensor dv;      // [batch..., Hk, Sk, Dv]
  Tensor dk_acc;  // [batch..., Hk, Sk, D], accumulator type; used with several splits
  Tensor dv_acc;  // [batch..., Hk, Sk, Dv], accumulator type; used with several splits
};

// Which scores the elements of an option have in common, axis by axis: along its own axes it has an element, or one of
// its blocks, for each position, along the others all positions add up. Of each pair one is 1.
struct TermSchedule {
  Divisor own_batch[kBatchDims], summed_batch[kBatchDims];
  Divisor own_heads, summed_heads;
  Divisor own_query_blocks, summed_query_blocks;
  Divisor own_key_blocks, summed_key_blocks;
  Divisor num_splits;  // blocks that share what adds up; each writes a partial result if there are several
  int own_rows, own_cols;  // 0 or 1: whether queries and keys are its own
  int64_t split_stride;    // elements from one partial result to the next
  int is_added;            // 0 or 1: what adds up is more than this launch has; the result joins what is there
};

struct TermParams {
  Shape shape;
  TermSchedule schedule;
  Tensor q;       // [batch..., Hq, Sq, D]
  Tensor k;       // [batch..., Hk, Sk, D]
  Tensor v;       // [batch..., Hk, Sk, Dv]
  Tensor dout;    // [batch..., Hq, Sq, Dv]
  Tensor lse;     // [batch..., Hq, Sq, 1], accumulator type
  Tensor delta;   // [batch..., Hq, Sq, 1], accumulator type
  Tensor sinks;   // [batch..., Hq, 1, 1]; unused but by attention_dsinks
  Tensor dterm;   // [batch..., Hq, Sq, Sk], type Out; stride 0 along axes that add up
  Tensor dterm_parts;  // [splits, ...] of the same, contiguous, accumulator type; unused (null) with one split
  Tensor changed;      // as in SealParams; unused but by attention_spoil_term
};

struct MergeParams {
  Shape shape;
  Tensor out_a;  // [batch..., Hq, Sq, Dv], as out_b and out; accumulator type if it was merged before
  Tensor lse_a;  // [batch..., Hq, Sq, 1], accumulator type, as lse_b and lse
  Tensor out_b;
  Tensor lse_b;
  Tensor out;  // accumulator type
  Tensor lse;
};

// Of arrays that are kept between two calls; gradients only to be spoilt.
struct SealParams {
  Shape shape;
  Tensor q;              // [batch..., Hq, Sq, D]
  Tensor k;              // [batch..., Hk, Sk, D]
  Tensor v;              // [batch..., Hk, Sk, Dv]
  Tensor out;            // [batch..., Hq, Sq, Dv]
  Tensor lse;            // [batch..., Hq, Sq, 1], accumulator type
  Tensor query_digests;  // [batch..., Hq, Sq, 3], int: of q, out, lse
  Tensor key_digests;    // [batch..., Hk, Sk, 2], int: of k, v
  Tensor changed;        // [1..., 1, 1, 5], int: of q, k, v, out, lse
  Tensor dq;             // [batch..., Hq, Sq, D]
  Tensor dk;             // [batch..., Hk, Sk, D]
  Tensor dv;             // [batch..., Hk, Sk, Dv]
};

constexpr int kSummaryAxes = 5;

// An array of ints and the least and the largest of neighbours along one of its axes (attention/block_lists.cu).
struct SummaryParams {
  void* data;
  void* summary;  // [sizes..., chunks], Range
  int sizes[kSummaryAxes];
  int64_t strides[kSummaryAxes];  // of the other axes, filled up with 1 and 0 in front
  int64_t stride;
  int64_t rows;  // elements of the other axes
  int length, chunks;
};
