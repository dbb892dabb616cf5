// The small kernels of gradients of options, shared by all kernel families:
//
//   attention_dsinks      dsink = -sum over rows of exp(sink - lse) * delta: a sink's share of a row has no value
//   attention_sum_splits  dterm = sum over splits of dterm_parts, in order
//   attention_spoil_term  dterm = NaN where arrays that a vjp keeps have changed (attention/seal.cu)
#include "attention/term.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/math.cuh"
#include "ptx/warp.cuh"
#include "specialization.cuh"

using Accumulator = AccumulatorOf<Element>::Type;

// A warp for each sink and split. Sinks are stored as their gradients are.
extern "C" __global__ void __launch_bounds__(32 * kNWarps) attention_dsinks(const __grid_constant__ TermParams params) {
  static_assert(kNWarps == 1, "a block is a warp");
  const Shape& shape = params.shape;
  TermWalk walk(shape, params.schedule, blockIdx.x);
  Accumulator sum = 0;
  while (walk.has_next()) {
    const auto [block, key_block, head, batch] = walk.next();
    const auto gLse = head_matrix<Accumulator>(params.lse, shape, batch, head, shape.seqlen_q, 1);
    const auto gDelta = head_matrix<Accumulator>(params.delta, shape, batch, head, shape.seqlen_q, 1);
    const auto sink = to_accumulator(*head_matrix<Out>(params.sinks, shape, batch, head, 1, 1).data);
    const int end = min((block + 1) * kBlockRows, shape.seqlen_q);
    Accumulator of_block = 0;
#pragma unroll 4
    for (int row = block * kBlockRows + threadIdx.x; row < end; row += 32) {
      const Accumulator lse = *gLse.at(row, 0), delta = *gDelta.at(row, 0);
      const Accumulator share = ptx::ex2((sink - lse) * static_cast<Accumulator>(kLog2E));
      if (lse != -infinity<Accumulator>()) of_block -= share * delta;  // a row that exists
    }
    sum += of_block;
  }
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) sum += ptx::shfl_xor(sum, lane_mask);
  if (threadIdx.x == 0) TermElements<Accumulator>(params, walk, 1, 1).store(0, 0, sum);
}

// A thread for each element: all are contiguous.
extern "C" __global__ void __launch_bounds__(32 * kNWarps)
    attention_sum_splits(const __grid_constant__ TermParams params) {
  const TermSchedule& schedule = params.schedule;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * (32 * kNWarps) + threadIdx.x;
  if (element >= schedule.split_stride) return;
  const Accumulator* from = static_cast<const Accumulator*>(params.dterm_parts.data) + element;
  Accumulator sum = 0;
  for (int split = 0; split < schedule.num_splits; ++split) sum += from[split * schedule.split_stride];
  from_accumulator(static_cast<Out*>(params.dterm.data)[element], sum);
}

extern "C" __global__ void __launch_bounds__(32 * kNWarps)
    attention_spoil_term(const __grid_constant__ TermParams params) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * (32 * kNWarps) + threadIdx.x;
  if (element >= params.schedule.split_stride) return;
  int any = 0;
  for (int array = 0; array < 5; ++array) any |= static_cast<const int*>(params.changed.data)[array];
  if (any) from_accumulator(static_cast<Out*>(params.dterm.data)[element], Accumulator(__int_as_float(0x7fffffff)));
}
