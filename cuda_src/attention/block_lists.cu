// Lists of the blocks that a traced mask shows anything of (attention/block_lists.cuh): a warp for each block of
// queries, or with kByKeys of keys, computes the mask's function of intervals, or with kFromTable looks it up.
#include "attention/range.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/warp.cuh"
#include "specialization.cuh"

template <int>
struct ParamsOf {
  using Type = ForwardParams;
};
template <>
struct ParamsOf<1> {
  using Type = BackwardParams;
};
template <>
struct ParamsOf<2> {
  using Type = TermParams;
};

extern "C" __global__ void __launch_bounds__(32)
    attention_block_lists(const __grid_constant__ Composed<ParamsOf<kParams>::Type> params) {
  const Shape& shape = params.shape;
  const BlockLists lists = Mask(params.components, BlockPlace(params.components, shape, 0, 0)).block_lists(kByKeys);
  const int row = blockIdx.x % lists.rows, rest = blockIdx.x / lists.rows;
  const int head = rest % lists.heads, batch = rest / lists.heads, lane = threadIdx.x;
  const int packed = lists.packed;  // heads whose rows stand in one block
  const Mask mask(params.components, BlockPlace(params.components, shape, batch, head * packed));
  // What the intervals of other parts leave of the row.
  const int first = kByKeys ? row * kBlockN : row * kBlockM / packed;
  const int last = kByKeys ? min(first + kBlockN, shape.seqlen_k) - 1
                           : min((row * kBlockM + kBlockM - 1) / packed, shape.seqlen_q - 1);
  const Interval seen = kByKeys ? mask.queries(first, last) : mask.keys(first, last);
  constexpr int kSize = kByKeys ? kBlockM : kBlockN;
  const int limit = kByKeys ? shape.seqlen_q : shape.seqlen_k;

  int* const entries = const_cast<int*>(BlockList(lists, batch, head, row).entries);
  int count = 0;
  for (int block0 = seen.begin / kSize; block0 * kSize < seen.end; block0 += 32) {
    const int begin = (block0 + lane) * kSize;
    int share = 0;
    if (begin < seen.end) {
      const int end = min(begin + kSize, limit) - 1;
      const int query = kByKeys ? begin : first, last_query = kByKeys ? end : last;
      const int key = kByKeys ? first : begin, last_key = kByKeys ? last : end;
      const int number = shape.first_batch + batch, head0 = head * packed, last_head = head0 + packed - 1;
      if (kFromTable) {
        share = mask.block_table().share(number, head0, last_head, query, last_query, key, last_key);
      } else {
        share = mask.template share<Ranges>(IntRange(number), IntRange(head0, last_head), IntRange(query, last_query),
                                            IntRange(key, last_key));
      }
    }
    const uint32_t some = ptx::ballot(share != 0);
    if (share != 0) entries[count + __popc(some & ((1u << lane) - 1))] = 2 * begin + (share == 2);
    count += __popc(some);
  }
  if (lane == 0) entries[-1] = count, entries[count] = 0;
}
