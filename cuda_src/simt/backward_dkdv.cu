// Gradients of keys and values on CUDA cores (FlashAttention-2, Dao 2023, Algorithm 2):
//
//   dV = P^T dO,  dK = dS^T Q,  and with kAtomicDq also dQ += dS K by atomic additions; kWantsDk, kWantsDv: which
//
// Grid: one block for kBlockN keys of one key head. It walks over the query heads of its group and their query
// blocks; dK and dV stay in registers, so grouped heads need no memory of their own.
#include "platform.cuh"
#include "params.cuh"
#include "numeric.cuh"
#include "specialization.cuh"
#include "attention/schedule.cuh"
#include "simt/backward_tiles.cuh"

constexpr int kKeyRows = kBlockN / kRowGroups;  // rows of dK and dV a thread
static_assert(kBlockN % kRowGroups == 0, "row groups share the keys evenly");
static_assert(2 * (kRows * kCols + kKeyRows * kSlices * kSliceCols) * sizeof(Accumulator) <= kSumBytes,
              "a thread's sums have 4 KiB");

__device__ __forceinline__ void add_to_dq(SharedStorage& shared, const Head& head, const Matrix<Accumulator>& gDq,
                                          int m0, int n0) {
  // dQ += dS K  [kBlockM, head_dim]
  for (int col0 = 0; col0 < head.k.cols; col0 += kSliceD) {
    reload_slice(shared.k(), head.k, n0, col0);
    Accumulator acc_dq[kRows][kSliceCols];
    set_zero(acc_dq);
    matmul_nn<kBlockN>(acc_dq, shared.p, shared.k());
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = m0 + row_of<kRows>(i);
#pragma unroll
      for (int j = 0; j < kSliceCols; ++j) {
        const int col = col0 + vector_col_of(j);
        if (row < gDq.rows && col < gDq.cols) atomicAdd(gDq.at(row, col), acc_dq[i][j]);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dkdv(const __grid_constant__ Composed<BackwardParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const auto [n0, split, head_k, batch] = key_block(shape, params.schedule, blockIdx.x);

  const BlockPlace place(params.components, shape, batch, head_k * shape.group_size);
  const Mask mask(params.components, place);
  const Score<Accumulator> score(params.components, place);
  Accumulator acc_dk[kSlices][kKeyRows][kSliceCols], acc_dv[kSlices][kKeyRows][kSliceCols];
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
    set_zero(acc_dk[slice]);
    set_zero(acc_dv[slice]);
  }

  const Interval queries = mask.queries(n0, min(n0 + kBlockN, shape.seqlen_k) - 1);
  const Interval seen = mask.keys(0, shape.seqlen_q - 1);
  bool key_held = false;
  for (int member = 0; member < shape.group_size; ++member) {
    const int head_q = place.head + member;
    const Head head = query_head(params, batch, head_q, queries, seen);
    const auto gDq = head_matrix<Accumulator>(params.dq_acc, shape, batch, head_q, shape.seqlen_q, shape.head_dim);
    auto step = steps<kBlockM>(mask.query_blocks(head_q, n0 / kBlockN), queries.begin / kBlockM * kBlockM, queries.end);
    for (; step.exists(); step.next()) {
      const int m0 = step.at;
      Accumulator p[kRows][kCols], ds[kRows][kCols];
      recompute(p, ds, shared, head, mask, score, member, m0, false, n0, key_held, step.is_whole());
      key_held = kResident;

      if (kWantsDv) publish(shared, p);  // dV += P^T dO  [kBlockN, head_dim_v]
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        if (kWantsDv && slice * kSliceD < shape.head_dim_v) {
          reload_slice(shared.dout(), head.dout, m0, slice * kSliceD);
          add_part(acc_dv[slice], [&](auto& part) { matmul_tn<kBlockM>(part, shared.p, shared.dout()); });
        }
      }

      if (kWantsDk || kAtomicDq) publish(shared, ds);  // dK += dS^T Q  [kBlockN, head_dim]
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        if (kWantsDk && slice * kSliceD < shape.head_dim) {
          reload_slice(shared.q(), head.q, m0, slice * kSliceD);
          add_part(acc_dk[slice], [&](auto& part) { matmul_tn<kBlockM>(part, shared.p, shared.q()); });
        }
      }
      if (kAtomicDq) add_to_dq(shared, head, gDq, m0, n0);
    }
  }

  const auto gDk = head_matrix<Element>(params.dk, shape, batch, head_k, shape.seqlen_k, shape.head_dim);
  const auto gDv = head_matrix<Element>(params.dv, shape, batch, head_k, shape.seqlen_k, shape.head_dim_v);
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
    for (int i = 0; i < kKeyRows; ++i) {
      if (kWantsDk) store_row(gDk, n0 + vector_row_of<kKeyRows>(i), slice * kSliceD, acc_dk[slice][i]);
      if (kWantsDv) store_row(gDv, n0 + vector_row_of<kKeyRows>(i), slice * kSliceD, acc_dv[slice][i]);
    }
  }
}
