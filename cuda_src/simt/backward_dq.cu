// Gradient of queries in a pass of its own, for the deterministic backward: dQ = dS K with the sum over keys in one
// thread, in order.
//
// Grid: query_block in attention/schedule.cuh.
#include "platform.cuh"
#include "params.cuh"
#include "numeric.cuh"
#include "specialization.cuh"
#include "attention/schedule.cuh"
#include "simt/backward_tiles.cuh"

static_assert(2 * kRows * (kCols + kSlices * kSliceCols) * sizeof(Accumulator) <= kSumBytes,
              "a thread's sums have 4 KiB");

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dq(const __grid_constant__ Composed<BackwardParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const auto [m0, head_q, batch] = query_block(shape, params.schedule, blockIdx.x);
  const BlockPlace place(params.components, shape, batch, head_q);
  const Mask mask(params.components, place);
  const Interval keys = mask.keys(m0, min(m0 + kBlockM, shape.seqlen_q) - 1);
  const Head head = query_head(params, batch, head_q, {0, shape.seqlen_q}, keys);
  const int first = keys.begin / kBlockN * kBlockN;

  const Score<Accumulator> score(params.components, place);
  Accumulator acc_dq[kSlices][kRows][kSliceCols], total_dq[kSlices][kRows][kSliceCols];
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
    set_zero(acc_dq[slice]);
    set_zero(total_dq[slice]);
  }

  auto step = steps<kBlockN>(mask.key_blocks(head_q, m0 / kBlockM), first, keys.end);
  for (const int first_met = step.at; step.exists(); step.next()) {
    const int n0 = step.at;
    if (kFewDigits && step.is_multiple(kStretch) && n0 > first_met) end_stretch(total_dq, acc_dq);
    Accumulator p[kRows][kCols], ds[kRows][kCols];
    recompute(p, ds, shared, head, mask, score, 0, m0, kResident && n0 > first_met, n0, false, step.is_whole());

    publish(shared, ds);  // dQ += dS K  [kBlockM, head_dim]
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      if (slice * kSliceD < shape.head_dim) {
        reload_slice(shared.k(), head.k, n0, slice * kSliceD);
        add_part(acc_dq[slice], [&](auto& part) { matmul_nn<kBlockN>(part, shared.p, shared.k()); });
      }
    }
  }

  if (kFewDigits) end_stretch(acc_dq, total_dq);
  const bool unrounded = params.dq_acc.data != nullptr;  // dQ is wanted as it was summed
  const auto gDq = head_matrix<Element>(params.dq, shape, batch, head_q, shape.seqlen_q, shape.head_dim);
  const auto gSum = head_matrix<Accumulator>(params.dq_acc, shape, batch, head_q, shape.seqlen_q, shape.head_dim);
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = m0 + row_of<kRows>(i), col0 = slice * kSliceD;
      if (unrounded) {
        store_row(gSum, row, col0, acc_dq[slice][i]);
      } else {
        store_row(gDq, row, col0, acc_dq[slice][i]);
      }
    }
  }
}
